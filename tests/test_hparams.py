"""TensorBoard's table of hyperparameters over runs that have different keys, as its own reader makes it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler

from vaex.training.metrics_log import MetricsLog


def test_the_table_has_a_column_for_each_key_of_any_run(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "a": {"likelihood": "gaussian", "likelihood/scale": "shared", "beta": 1.0},
        "b": {"likelihood": "bernoulli", "dataset.binarize": "static", "beta": 2.0},
        "c": {"likelihood": "student_t", "likelihood.df": 3.0, "beta": 1.0},
    }
    for name, values in runs.items():
        (tmp_path / name).mkdir()
        with MetricsLog(tmp_path / name, 0) as log:
            log.hyperparameters(values, ["test/elbo"])
            log.numbers(1, 1.0, {"test/elbo": -1.0})
            log.finish()
    reader = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(reader, str(tmp_path))
    context = Context(SimpleNamespace(data_provider=provider))
    experiment = Handler(RequestContext(), context, "", GetExperimentRequest()).run()
    assert {info.name for info in experiment.hparam_infos} == {key for values in runs.values() for key in values}
    assert "test/elbo" in {info.name.tag for info in experiment.metric_infos}
