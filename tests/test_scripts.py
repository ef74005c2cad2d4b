"""The scripts behind the documents."""

import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from vaex.config import config_dir

matplotlib.use("Agg")
SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_lowest_likelihood_is_at_the_closed_form_in_the_plot(tmp_path: Path, monkeypatch) -> None:
    import matplotlib.pyplot as plt
    import scale_study

    ratios = scale_study.plot_nll(plt.subplots()[1])
    assert len(ratios) == 6
    assert all(ratio == pytest.approx(1, abs=0.01) for ratio in ratios.values())
    monkeypatch.setattr(sys, "argv", ["scale_study.py", "--out", str(tmp_path / "study.png")])
    scale_study.main()
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.width > 1000


def test_the_table_has_every_likelihood_and_every_scale_rule() -> None:
    import likelihood_table

    chosen = list(likelihood_table.settings().values())
    for likelihood in (config_dir() / "likelihood").glob("*.yaml"):
        assert any(f"likelihood={likelihood.stem}" in overrides for overrides in chosen)
    for rule in (config_dir() / "likelihood" / "scale").glob("*.yaml"):
        for family in ("gaussian", "laplace", "logistic", "student_t"):
            assert any({f"likelihood={family}", f"likelihood/scale={rule.stem}"} <= set(o) for o in chosen)


def test_a_table_ranks_only_what_may_be_ranked() -> None:
    import likelihood_table

    records = [
        {"run": "worse", "test/scored_pixels": "(k+u)/256", "test/bits_per_dim": 2.0, "test/mse": 0.1},
        {"run": "better", "test/scored_pixels": "k/255", "test/bits_per_dim": 1.0, "test/mse": 0.2},
        {"run": "coin", "test/scored_pixels": "binary", "test/bits_per_dim": 0.1, "test/mse": 0.3},
        {"run": "pseudo", "test/mse": 0.4},
    ]
    text = likelihood_table.tables(records)
    assert text.index("better") < text.index("worse") < text.index("### Binary") < text.index("coin")
    assert "| pseudo | 0.40000 |" in text
