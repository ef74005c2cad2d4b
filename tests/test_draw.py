"""`vaex draw`: what it writes, what it says, and what it refuses before it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import results
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaex.commands.draw import main
from vaex.errors import UserError
from vaex.figures.kinds import KINDS

Here = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def refused(*arguments: object) -> str:
    """The one line of the error."""
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


def test_a_run_is_drawn_in_every_kind_that_it_has(here: Here, tiny: list[str], capsys: Captured) -> None:
    run = here(*tiny, "steps=12", "device=cpu", "latent_dim=2", "likelihood/scale=per_pixel", "figures.images=5")
    drawn_in_training = {
        name: (run / "figures" / f"{name}.png").read_bytes() for name in ("reconstructions", "samples")
    }
    before, seen = files(run), images(run)
    capsys.readouterr()

    assert refused(run, "denoising", "samples") == (
        "denoising: needs a corruption, and this run's encoder sees the images themselves"
    )
    assert refused(run, "sampels") == "sampels: no such kind of picture, and no folder; did you mean samples?"
    assert "there are reconstructions, samples," in refused(run, "xyz")
    assert files(run) == before and not capsys.readouterr().out

    main([str(run), "manifold", "--count", "3", "--out", "elsewhere"])
    assert files(run) == before and files(Path("elsewhere")) == {"manifold.png"}
    with Image.open("elsewhere/manifold.png") as picture:
        assert 3 * 56 < picture.size[1] < 5 * 56
    capsys.readouterr()

    main([str(run), "--device", "cpu"])
    kinds = [name for name in KINDS if name not in ("denoising", "projector")]
    pictures = {f"figures/{name}.png" for name in kinds} | {"figures/traversals.gif"}
    new_events = {name for name in files(run) - before if name.startswith("events.out")}
    assert files(run) - before - new_events == pictures - before and len(new_events) == 1
    for name, content in drawn_in_training.items():
        assert (run / "figures" / f"{name}.png").read_bytes() == content
    first, *said = capsys.readouterr().out.splitlines()
    assert first == str(run) and [line.split()[0] for line in said] == [name for name in KINDS if name != "projector"]
    for line in said:
        name, path, *_ = line.split()
        assert path == ("not" if name == "denoising" else str(run / "figures" / f"{name}.png"))
    steps = results(run)["train/steps"]
    assert images(run) == {name: [*seen.get(name, []), steps] for name in kinds}

    main([str(run), "projector"])
    assert (run / "projector_config.pbtxt").is_file() and (run / "projector" / "codes.tsv").is_file()


def test_codes_of_two_runs_beside_each_other(here: Here, tiny: list[str], capsys: Captured) -> None:
    vae = here(*tiny, "steps=2", "device=cpu", "latent_dim=3", folder="sweep/vae")
    code = here(*tiny, "steps=2", "device=cpu", "objective=ae", folder="sweep/ae")
    assert refused(vae, code, "samples") == f"samples: needs a prior, and objective=ae has none ({code})"
    main([str(vae), str(code), "latents", "--count", "50"])
    sizes = {}
    for path in (vae / "figures/latents.png", code / "figures/latents.png", vae / "figures/latents_beside.png"):
        with Image.open(path) as picture:
            sizes[path.stem, path.parent.parent.name] = picture.size[0]
    assert sizes["latents_beside", "vae"] > 1.5 * sizes["latents", "vae"]
    capsys.readouterr()
    main(["sweep", "reconstructions", "--count", "3", "--out", "out"])
    assert files(Path("out")) == {"vae/reconstructions.png", "ae/reconstructions.png"}
    assert "latents" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["samples"], "samples: is a kind of picture; give the folder of a run before it"),
        (["nowhere"], "nowhere: no such folder"),
        (["nowhere", "elsewhere/run"], "nowhere: no such folder"),
        (["nowhere", "--count=0"], "--count=0: must be >= 1"),
        (["nowhere", "--device=tpu"], "--device=tpu: must be auto, cpu, cuda or cuda:N"),
        (["nowhere", "--cuont=3"], "--cuont=3"),
        ([], "vaex draw --help"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments)


def test_help_names_every_kind(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in KINDS) and "RUN" in shown
