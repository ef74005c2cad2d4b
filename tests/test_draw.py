"""`vaex draw`: what it writes and prints, and what it refuses before it draws anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import results
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaex.commands.draw import main
from vaex.errors import UserError
from vaex.figures.kinds import FIGURES

Here = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def refused(*arguments: object) -> str:
    """The error, which is one line."""
    with pytest.raises(UserError) as error:
        main(list(map(str, arguments)))
    (line,) = str(error.value).splitlines()
    return line


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def images(run: Path) -> dict[str, list[int]]:
    """Steps of the pictures in the run's events, by tag."""
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_every_kind_that_applies_to_a_run_is_drawn(here: Here, tiny: list[str], capsys: Captured) -> None:
    run = here(*tiny, "steps=12", "device=cpu", "latent_dim=2", "likelihood/scale=per_pixel", "figures.images=5")
    from_training = {name: (run / "figures" / f"{name}.png").read_bytes() for name in ("reconstructions", "samples")}
    before, events_before = files(run), images(run)
    capsys.readouterr()

    assert refused(run, "denoising", "samples") == ("denoising: needs a corruption; this run has corruption=none")
    assert refused(run, "sampels") == "sampels: no such kind of figure, and no such folder; did you mean samples?"
    assert "there are reconstructions, levels, samples," in refused(run, "xyz")
    assert files(run) == before and not capsys.readouterr().out

    main([str(run), "manifold", "--count", "3", "--out", "elsewhere"])
    assert files(run) == before and files(Path("elsewhere")) == {"manifold.png"}
    with Image.open("elsewhere/manifold.png") as picture:
        assert 3 * 56 < picture.size[1] < 5 * 56
    capsys.readouterr()

    main([str(run), "--device", "cpu"])
    others = ("denoising", "pseudo_inputs", "levels", "group_rates")  # which do not apply to this run
    kinds = [name for name in FIGURES if name not in (*others, "projector")]
    pictures = {f"figures/{name}.png" for name in kinds} | {"figures/traversals.gif"}
    new_events = {name for name in files(run) - before if name.startswith("events.out")}
    assert files(run) - before - new_events == pictures - before and len(new_events) == 1
    for name, content in from_training.items():
        assert (run / "figures" / f"{name}.png").read_bytes() == content
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(run) and [line.split()[0] for line in lines] == [
        name for name in FIGURES if name != "projector"
    ]
    for line in lines:
        name, path, *_ = line.split()
        assert path == ("not" if name in others else str(run / "figures" / f"{name}.png"))
    steps = results(run)["train/steps"]
    assert images(run) == {name: [*events_before.get(name, []), steps] for name in kinds}

    main([str(run), "projector"])
    assert (run / "projector_config.pbtxt").is_file() and (run / "projector" / "codes.tsv").is_file()


def test_codes_of_two_runs_beside_each_other(here: Here, tiny: list[str], capsys: Captured) -> None:
    common = [*tiny, "steps=2", "device=cpu", "figures.kinds=[]"]
    vae = here(*common, "latent_dim=3", folder="sweep/vae")
    ae = here(*common, "objective=ae", folder="sweep/ae")
    assert refused(vae, ae, "samples") == f"samples: needs a prior, and this objective has none ({ae})"
    main([str(vae), str(ae), "latents", "--count", "50"])
    assert (ae / "figures/latents.png").is_file()
    widths = {}
    for name in ("latents", "latents_beside"):
        with Image.open(vae / "figures" / f"{name}.png") as picture:
            widths[name] = picture.size[0]
    assert widths["latents_beside"] > 1.5 * widths["latents"]
    capsys.readouterr()
    main(["sweep", "reconstructions", "--count", "3", "--out", "out"])
    assert files(Path("out")) == {"vae/reconstructions.png", "ae/reconstructions.png"}
    assert "latents" not in capsys.readouterr().out


def test_wrong_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in {
        "samples": "samples: is a kind of figure; give the folder of a run before it",
        "nowhere": "nowhere: no such folder",
        "nowhere elsewhere/run": "nowhere: no such folder",
        "nowhere --count=0": "--count=0: must be >= 1",
        "nowhere --device=tpu": "--device=tpu: must be auto, cpu, cuda or cuda:N",
        "nowhere --cuont=3": "--cuont=3",
        "": "vaex draw --help",
    }.items():
        assert message in refused(*arguments.split()), arguments


def test_help_names_every_kind(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in FIGURES) and "RUN" in text
