"""From a configuration to a run folder, and from that to running processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError

import auxdist
from auxdist.config import IMAGENET, Config
from auxdist.configfile import dump_config, load_config, located
from auxdist.data.index import INDEX_NAME
from auxdist.errors import ConfigError, LaunchError
from auxdist.jobs.checks import problems, random_start, sbatch_problems
from auxdist.jobs.job import Job
from auxdist.jobs.local import Outcome, cpus_per_process, run_processes
from auxdist.jobs.slurm import is_unfinished, job_state, misleading_variables
from auxdist.jobs.spec import JobExecutor, LaunchSpec, launch_spec
from auxdist.runfolder import RunFolder, file_sha256, write_text

CODE = Path(auxdist.__file__).resolve().parents[1]
"""The folder that holds the auxdist package."""

_FREE_KEYS = (
    "launch.",
    "compute.",
    "evaluate.",
    "labels.gate.",
    "data.workers",
    "data.measure_labels",
    "data.bad_sample_budget",
    "labels.bad_sample_budget",
    "train.micro_batch",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
)
"""What may change between two starts of a run: nothing that is learned depends on it, or, as for
the number of processes and the micro-batch, by no more than the rounding of fp32."""


_PATHS = ("data.train", "data.val", "model.weights", "classifier.weights")


@dataclass(frozen=True)
class Request:
    """What a person asked to run: a configuration file, changes to it, and a run folder."""

    config_file: Path
    overrides: Sequence[str] = ()
    run_root: Path | None = None

    def config(self) -> Config:
        """The resolved configuration. Paths become absolute: jobs start in other folders.

        Raises:
            ConfigError: with all problems of the file and the overrides.
        """
        return _with_absolute_paths(load_config(self.config_file, self.overrides))

    def run(self, config: Config) -> RunFolder:
        """The run folder: as asked for, or runs/<name>."""
        root = (self.run_root or Path("runs") / config.name).absolute()
        if "%" in str(root):
            raise LaunchError(
                f"{root}: SLURM reads % in the names of log files as a pattern; use --run with a "
                "path without %."
            )
        return RunFolder(root)


def create_run(request: Request, num_ranks: int | None = None) -> tuple[RunFolder, Config]:
    """Check everything, then make the run folder, or open it where it has this configuration.

    Prints what is allowed in a new run, but rarely meant.

    `num_ranks` is the number of processes that will run; without it that of the launch section.

    Raises:
        ConfigError: with all problems, and all keys that differ from the run's configuration.
        LaunchError: the run is going on, here or on the cluster.
    """
    run, config = checked(request, num_ranks)
    with only_launcher(run):
        _require_not_queued_here(run)
        if found := _differences(run, config):  # another launcher may have made it meanwhile
            raise ConfigError(found)
        # Before the configuration: a death in between must not leave a run that says it is complete
        # and is not, or the picture of fewer rounds.
        if has_more_to_do(run, config):
            run.complete.unlink(missing_ok=True)
        if wants_more_rounds(run, config):
            run.examples.unlink(missing_ok=True)
        if not run.config.exists() and (warning := random_start(config)):
            print(warning, flush=True)
        write_text(run.config, dump_config(config))
        run.failure.unlink(missing_ok=True)
    return run, config


def checked(request: Request, num_ranks: int | None = None) -> tuple[RunFolder, Config]:
    """The run and the configuration of a request that can work; nothing is written.

    Raises:
        ConfigError: with all problems, and all keys that differ from the run's configuration.
    """
    config = request.config()
    run = request.run(config)
    found = located(problems(config, num_ranks, run), request.config_file, request.overrides)
    if found := [*found, *_differences(run, config)]:
        raise ConfigError(found)
    return run, config


def has_more_to_do(run: RunFolder, config: Config) -> bool:
    """True where a run that is complete would not be with this configuration."""
    if not run.config.exists():
        return False
    old, new = load_config(run.config), config
    # Of the section evaluate, only these matter to what a run measures by itself.
    seen = [(each.evaluate.precision, each.evaluate.window) for each in (old, new)]
    return (
        wants_more_rounds(run, config)
        or (new.data.val is not None and seen[0] != seen[1])
        or _has_other_images(run, new)
        or (new.data.measure_labels and not old.data.measure_labels)
    )


def _has_other_images(run: RunFolder, config: Config) -> bool:
    """True where the split to measure on was built anew since a run measured on it."""
    index = Path(config.data.val or "") / INDEX_NAME
    if config.data.val is None or not index.exists():
        return False
    now = file_sha256(index)
    measured = [path for n in range(config.train.rounds) for path in run.evaluations("val", n)]
    return any(_images_of(path, now) != now for path in measured)


def _images_of(measured: Path, unsaid: str) -> str | None:
    """What names the images of a measurement; None where the file is damaged."""
    try:
        return str(json.loads(measured.read_text()).get("images", unsaid))
    except ValueError:
        return None


def wants_more_rounds(run: RunFolder, config: Config) -> bool:
    """True where a run is to have more rounds than it was made for: it goes on after its last."""
    return run.config.exists() and load_config(run.config).train.rounds < config.train.rounds


def start_locally(run: RunFolder, config: Config, procs: int) -> Outcome:
    """Run everything that is left to do on this machine; returns when it ended.

    Raises:
        LaunchError: the run is already going on, here or on the cluster.
    """
    command = [sys.executable, "-m", "auxdist.jobs.job", str(run.root)]
    with only_launcher(run):
        _require_not_queued_here(run)
        return run_processes(command, procs, rank_environment(config, procs))


def rank_environment(config: Config, procs: int) -> dict[str, str]:
    """What local ranks need besides their rank: this very code, and their share of the CPUs."""
    threads = config.compute.threads_per_rank or cpus_per_process(procs)
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}


def submit(run: RunFolder, config: Config) -> str:
    """Hand the run to SLURM; the job's id comes back.

    Raises:
        LaunchError: as require_submittable, or sbatch refuses it.
    """
    executor = JobExecutor(spec_of(run, config), run.launch)
    with only_launcher(run):  # two at once would not see each other's job
        require_submittable(run, config)
        try:
            with _without_variables(misleading_variables(os.environ, executor.batch_text())):
                job_id = executor.submit(Job(str(run.root))).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            raise LaunchError(f"sbatch refused the job: {error}") from error
        with run.jobs.open("a") as file:
            file.write(json.dumps({"job_id": job_id, "time": time.time()}) + "\n")
    return str(job_id)


@contextmanager
def _without_variables(names: Sequence[str]) -> Iterator[None]:
    """Within the block the environment does not have these variables."""
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def require_submittable(run: RunFolder, config: Config) -> None:
    """Return if a job of this run can be handed to SLURM from here.

    Raises:
        LaunchError: there is no sbatch, no torch for the GPUs, or the run is already in the queue.
    """
    if found := list(sbatch_problems(config)):
        raise LaunchError("\n".join(found))
    require_not_queued(run)


def _require_not_queued_here(run: RunFolder) -> None:
    """As `require_not_queued`, for a start on this machine, which need not have SLURM."""
    if shutil.which("scontrol"):
        require_not_queued(run)


def require_not_queued(run: RunFolder) -> None:
    """Return if SLURM does not know of an unfinished job of this run.

    Raises:
        LaunchError: it does, or cannot be asked.
    """
    if (known := last_job(run)) and is_unfinished(state := job_state(known)):
        raise LaunchError(
            f"{run.root}: job {known} of this run is {state}; wait for it, or end it with "
            f"`scancel {known}` first."
        )


def dry_run(run: RunFolder, config: Config) -> tuple[Path, str, str]:
    """Where the batch file and the configuration were written, and the text of both.

    The run's own config.yaml stays as it is: a dry run commits to nothing.
    """
    folder = run.launch / "dry-run"
    texts = JobExecutor(spec_of(run, config), run.launch).batch_text(), dump_config(config)
    for name, text in zip(("job.sbatch", "config.yaml"), texts, strict=True):
        write_text(folder / name, text)
    return folder, *texts


def spec_of(run: RunFolder, config: Config) -> LaunchSpec:
    """The SLURM job of a run."""
    return launch_spec(config, run, CODE)


def last_job(run: RunFolder) -> str | None:
    """The SLURM job that was submitted last for a run."""
    lines = run.jobs.read_text().splitlines() if run.jobs.exists() else []
    return str(json.loads(lines[-1])["job_id"]) if lines else None


def _with_absolute_paths(config: Config) -> Config:
    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path and path != IMAGENET else path

    data = replace(
        config.data, train=absolute(config.data.train) or "", val=absolute(config.data.val)
    )
    model = replace(config.model, weights=absolute(config.model.weights))
    classifier = replace(config.classifier, weights=absolute(config.classifier.weights))
    return replace(config, data=data, model=model, classifier=classifier)


def _differences(run: RunFolder, config: Config) -> list[str]:
    """Keys in which a run's own configuration is another one, as text."""
    free = ("train.rounds",) if wants_more_rounds(run, config) else ()
    return [
        f"{run.config}: {key} is {old} in this run, but {new} is asked for; a run keeps its "
        "configuration: use the old value, or --run with another folder."
        for key, (old, new) in changed_keys(run, config).items()
        if key not in free
    ]


def changed_keys(run: RunFolder, config: Config) -> dict[str, tuple[Any, Any]]:
    """Keys on which something learned depends, where a run's own value and this one differ."""
    if not run.config.exists():
        return {}
    old, new = (_flat(asdict(each)) for each in (load_config(run.config), config))
    return {
        key: (old.get(key), new.get(key))
        for key in old | new
        if not _is_same(key, old.get(key), new.get(key)) and not key.startswith(_FREE_KEYS)
    }


def _is_same(key: str, old: Any, new: Any) -> bool:
    """Whether two values mean the same; a path is another way to the same place, or is not."""
    if key in _PATHS and old and new:
        return os.path.realpath(old) == os.path.realpath(new)
    return bool(old == new)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@contextmanager
def only_launcher(run: RunFolder) -> Iterator[None]:
    """Held while processes run; the kernel lets go of it should the launcher die.

    Raises:
        LaunchError: somebody else holds it, or the file system knows no locks.
    """
    run.launch.mkdir(parents=True, exist_ok=True)
    with run.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"{run.root}: another launcher is at work in this folder; wait for it, stop it, "
                "or use --run with another folder."
            ) from error
        except OSError as error:
            raise LaunchError(
                f"{file.name}: cannot be locked ({error.strerror}), so two starts could run at "
                "once; put the run on a file system with locks (Lustre: mounted with -o flock)."
            ) from error
        yield
