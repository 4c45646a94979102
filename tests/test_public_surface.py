"""The names that users write: of the package, and of the command line. Scripts depend on them: add, do not rename."""

from typer.main import get_command

import distmeta
from distmeta.cli.main import app

MODULES = {"data", "errors", "learners", "models", "tasks", "testing"}
NAMES = {
    "AdaptedModel",
    "AssociativeRecallTask",
    "Comparison",
    "CopyTask",
    "DistmetaError",
    "Episode",
    "Evaluation",
    "EvaluationReport",
    "EvaluationRequest",
    "EvaluationResult",
    "Experiment",
    "FastModel",
    "FewShot",
    "FunctionTasks",
    "GaussianProcesses",
    "ImageCompletion",
    "InContext",
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
    "Predictor",
    "Prior",
    "PrioritySortTask",
    "Projections",
    "ProtoNet",
    "RepeatCopyTask",
    "Reptile",
    "Ridge",
    "RunResult",
    "Runtime",
    "Siamese",
    "Sinusoids",
    "Sweep",
    "Tables",
    "Task",
    "TaskDistribution",
    "TaskSpec",
    "adapter",
    "attentive_cnp",
    "cnp",
    "compare",
    "conv4",
    "evaluate",
    "export",
    "from_arrays",
    "image_context",
    "inspect_run",
    "koch_cnn",
    "load",
    "load_job",
    "lstm",
    "mann",
    "mann_network",
    "meta_train",
    "mlp",
    "ntm",
    "ntm_network",
    "sweep",
    "table_transformer",
    "task_distribution",
    "tnp",
    "use_batch_statistics",
}

PLACE = "--address --backend --workers"
BENCH = "--against --json --out --png --seconds --tolerance"
TRACKING = "--tracking --no-tracking --tracking-required --no-tracking-required --tracking-uri"
COMMANDS = {
    "audit": "job --data --json --set --tasks",
    "bench inner-loop": f"job --chunks --data --device --learner --set --steps --threads {BENCH}",
    "bench memory": f"job --data --set --steps {BENCH}",
    "bench overhead": f"job --address --data --set {BENCH}",
    "bench peers": f"--address --cases --device --peers --python --set --threads {BENCH}",
    "bench plain": f"--learners --threads {BENCH}",
    "bench sampling": f"job --batches --data --set {BENCH}",
    "bench scaling": f"job --address --data --set --workers {BENCH}",
    "bench startup": f"--address {BENCH}",
    "check": "job --data --json --set",
    "data build": "source --allow-duplicates --channels --from --ink --instances --json --min-images --out --size "
    "--skip-corrupt --split --workers",
    "data encode": "dataset --batch --device --encoder --encoder-classes --json --out --workers",
    "data inspect": "directory --json",
    "data verify": "directory --json",
    "evaluate": "run_dir --against --changed-code --controls --data --inner-steps --json --lengths --seed --set "
    f"--shots --split --tasks {PLACE}",
    "export": "run_dir --alias --json --out --register --requirement --tracking-uri",
    "inspect": "run_dir --json",
    "report": "runs --json --out",
    "list": "--json",
    "predict": "source --json --picture --query --support --target",
    "reproduce": f"card --data --json --minutes --run-dir --set --show {PLACE} {TRACKING}",
    "resume": f"run_dir --changed-code --data --json --set {PLACE} {TRACKING}",
    "serve": "source --address --batch --batch-wait-ms --host --json --keep-minutes --max-batch --max-body "
    "--max-classes --max-examples --max-pixels --max-tasks --no-batch --port --replicas --token",
    "submit": "job --address --data --json --no-wait --run-dir --set --tracking-uri --workers",
    "track sync": "run_dir --json --tracking-uri",
    "train": f"job --data --json --profile --profile-steps --run-dir --set {PLACE} {TRACKING}",
}


def test_the_package():
    assert set(distmeta.__all__) == NAMES
    assert len(distmeta.__all__) == len(NAMES)
    for name in NAMES:
        assert hasattr(distmeta, name), f"distmeta.{name} is listed in __all__ and does not exist"


def test_dir_shows_the_public_names_and_no_other():
    assert {name for name in dir(distmeta) if not name.startswith("_")} == NAMES | MODULES


def test_the_command_line():
    def walk(command, path=""):
        for name, sub in command.commands.items():
            if hasattr(sub, "commands"):
                yield from walk(sub, f"{path}{name} ")
            else:
                yield path + name, {word for p in sub.params for word in (*p.opts, *p.secondary_opts)}

    assert dict(walk(get_command(app))) == {name: set(words.split()) for name, words in COMMANDS.items()}
