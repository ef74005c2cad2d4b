"""Train the classifier of the embedded MNIST and write the weights that ship with vaex: about five minutes on one core.

    python scripts/train_classifier.py

The last two lines of the output are constants for vaex/evaluation/classifier.py. On another machine or with another
version of torch the weights differ, and with them the scale of the FID, so run this only for a new VERSION of the
classifier.
"""

import argparse

from vaex.data.mnist import mnist
from vaex.evaluation.classifier import MNIST_WEIGHTS, accuracy, hash_of, save_classifier, train_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the packaged MNIST classifier.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()

    source = mnist()
    classifier = train_classifier(source.train, source.classes, seed=arguments.seed, epochs=arguments.epochs)
    score = accuracy(classifier, source.test)
    weights_hash = save_classifier(
        MNIST_WEIGHTS, classifier, test_accuracy=score, seed=arguments.seed, epochs=arguments.epochs
    )
    print(f"test accuracy: {100 * score:.2f} %")
    print(f"{MNIST_WEIGHTS}: {MNIST_WEIGHTS.stat().st_size / 1e6:.2f} MB")
    print(f'MNIST_WEIGHTS_SHA256 = "{weights_hash}"')
    print(f'MNIST_DATA_SHA256 = "{hash_of(source.train)}"')


if __name__ == "__main__":
    main()
