"""The names that users write: of the package, and of the command line. Scripts depend on them: add, do not rename."""

from typer.main import get_command

import distmeta
from distmeta.cli.main import app

NAMES = {
    "AssociativeRecallTask",
    "CopyTask",
    "DistmetaError",
    "Episode",
    "Evaluation",
    "EvaluationReport",
    "Experiment",
    "FastModel",
    "FewShot",
    "FunctionTasks",
    "LabelSequences",
    "LakeRuns",
    "LocalBackend",
    "MAML",
    "MAMLPlusPlus",
    "MANN",
    "MatchingNet",
    "MetaLearner",
    "MetaModule",
    "MetaSGD",
    "NGramsTask",
    "NTM",
    "Outer",
    "Place",
    "PrioritySortTask",
    "ProtoNet",
    "RepeatCopyTask",
    "Reptile",
    "RunResult",
    "Runtime",
    "Siamese",
    "Sinusoids",
    "Task",
    "TaskDistribution",
    "TaskSpec",
    "Yardstick",
    "compare",
    "conv4",
    "evaluate",
    "from_arrays",
    "inspect_run",
    "judge",
    "koch_cnn",
    "load_job",
    "lstm",
    "mann",
    "meta_train",
    "mlp",
    "ntm",
    "sweep",
    "task_distribution",
    "use_batch_statistics",
}

PLACE = {"--workers", "--backend", "--address"}
TRACKING = {"--tracking-uri", "--tracking", "--no-tracking"}
COMMANDS = {
    "check": {"job", "--set", "--data", "--json"},
    "data build": {"source", "--out", "--from", "--split", "--size", "--instances", "--channels", "--json"},
    "data inspect": {"directory", "--json"},
    "data verify": {"directory", "--json"},
    "evaluate": {
        *("run_dir", "--tasks", "--split", "--seed", "--data", "--json", "--against", "--shots", "--inner-steps"),
        *("--lengths", "--set", *PLACE),
    },
    "inspect": {"run_dir", "--json"},
    "list": {"--json"},
    "reproduce": {"card", "--show", "--minutes", "--run-dir", "--set", "--data", "--json", *PLACE, *TRACKING},
    "resume": {"run_dir", "--set", "--data", "--json", *PLACE, *TRACKING},
    "submit": {
        *("job", "--address", "--workers", "--set", "--data", "--run-dir", "--tracking-uri", "--no-wait", "--json"),
    },
    "track sync": {"run_dir", "--tracking-uri", "--json"},
    "train": {
        *("job", "--run-dir", "--set", "--data", "--tracking-required", "--no-tracking-required", "--json"),
        *(*PLACE, *TRACKING),
    },
}


def test_the_package():
    assert set(distmeta.__all__) == NAMES
    assert len(distmeta.__all__) == len(NAMES)
    for name in NAMES:
        assert hasattr(distmeta, name), f"distmeta.{name} is listed in __all__ and does not exist"


def test_dir_shows_the_public_names():
    assert set(dir(distmeta)) >= NAMES


def test_the_command_line():
    def walk(command, path=""):
        for name, sub in command.commands.items():
            if hasattr(sub, "commands"):
                yield from walk(sub, f"{path}{name} ")
            else:
                yield path + name, {word for p in sub.params for word in (*p.opts, *p.secondary_opts)}

    assert dict(walk(get_command(app))) == COMMANDS
