"""The paper's tables and figures: its numbers, and which of our runs stands beside each.

Errors are percent, on ImageNet's validation images unless a table says otherwise. None: the paper
gives no number.
"""

from dataclasses import dataclass

Errors = tuple[float | None, float | None]  # top-1, top-5


@dataclass(frozen=True)
class Test:
    """How a trained network is tested, in keys of eval.py."""

    name: str  # of the result file: result-NAME.json
    views: str
    scales: tuple[int, ...]
    subset: int | None = None

    def scaled(self, crop: int) -> "Test":
        """The test of scaled runs: scales in proportion to the crop, and fewer images."""
        scales = tuple(round(scale * crop / 224) for scale in self.scales)
        return Test(self.name, self.views, scales, subset=2000)


TEN = Test("ten", "ten", (256,))
DENSE = Test("dense", "dense", (256, 384, 480))
SCALED_SEEDS = (0, 1, 2)
SCALED_CROP = 64  # of configs/experiment/scaled.yaml

# Table 7: six models, one of them C; the paper does not name the others.
ENSEMBLE = "ensemble"  # the experiment of the six together
ENSEMBLE_MEMBERS = (  # experiment (configs/experiment/) and seed
    ("c-prelu", 0),
    ("b-prelu", 0),
    ("b-prelu", 1),
    ("a-prelu", 0),
    ("a-prelu", 1),
    ("a-prelu", 2),
)


@dataclass(frozen=True)
class Row:
    """A row of errors."""

    label: tuple[str, ...]
    paper: Errors
    experiment: str | None = None  # None: quoted by the paper from others
    test: Test = TEN
    scale: int | None = None  # None: all scales of the test combined


@dataclass(frozen=True)
class ErrorTable:
    """A table of top-1 and top-5 errors."""

    name: str
    title: str
    head: tuple[str, ...]  # above the labels of the rows
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class CurveFigure:
    """Error, loss and gradients over the course of training."""

    name: str
    title: str
    curves: tuple[tuple[str, str], ...]  # label, experiment
    claim: str

    @property
    def experiments(self) -> list[str]:
        """The experiments of its curves, in order."""
        return [experiment for _, experiment in self.curves]


TABLE2 = ErrorTable(
    name="table2",
    title="Table 2: rectifiers in the 14-layer model, ten views at scale 256",
    head=("activation",),
    rows=(
        Row(("ReLU",), (33.82, 13.34), "small14-relu"),
        Row(("Leaky ReLU, a = 0.01",), (None, None), "small14-lrelu"),
        Row(("PReLU, channel-shared",), (32.71, 12.87), "small14-prelu-shared"),
        Row(("PReLU, channel-wise",), (32.64, 12.75), "small14-prelu"),
    ),
    note="The paper's table has no Leaky ReLU.",
)

TABLE4 = ErrorTable(
    name="table4",
    title="Table 4: ReLU and PReLU in model A, dense testing",
    head=("scale", "activation"),
    rows=(
        Row(("256", "ReLU"), (26.25, 8.25), "a-relu", test=DENSE, scale=256),
        Row(("256", "PReLU"), (25.81, 8.08), "a-prelu", test=DENSE, scale=256),
        Row(("384", "ReLU"), (24.77, 7.26), "a-relu", test=DENSE, scale=384),
        Row(("384", "PReLU"), (24.20, 7.03), "a-prelu", test=DENSE, scale=384),
        Row(("480", "ReLU"), (25.46, 7.63), "a-relu", test=DENSE, scale=480),
        Row(("480", "PReLU"), (24.83, 7.39), "a-prelu", test=DENSE, scale=480),
        Row(("multi-scale", "ReLU"), (24.02, 6.51), "a-relu", test=DENSE),
        Row(("multi-scale", "PReLU"), (22.97, 6.28), "a-prelu", test=DENSE),
    ),
    note="Both runs switch the learning rate at the same epochs.",
)

TABLE5 = ErrorTable(
    name="table5",
    title="Table 5: single models, ten views",
    head=("model",),
    rows=(
        Row(("MSRA [11]",), (29.68, 10.95)),
        Row(("VGG-16 [25], tested by the authors",), (28.07, 9.33)),
        Row(("GoogLeNet",), (None, 9.15)),
        Row(("A, ReLU",), (26.48, 8.59), "a-relu"),
        Row(("A, PReLU",), (25.59, 8.23), "a-prelu"),
        Row(("B, PReLU",), (25.53, 8.13), "b-prelu"),
        Row(("C, PReLU",), (24.27, 7.38), "c-prelu"),
    ),
)

TABLE6 = ErrorTable(
    name="table6",
    title="Table 6: single models, dense testing at scales 256, 384 and 480",
    head=("model",),
    rows=(
        Row(("MSRA [11], in competition, test set",), (27.86, 9.08)),
        Row(("VGG [25], in competition, test set",), (None, 8.43)),
        Row(("GoogLeNet, in competition",), (None, 7.89)),
        Row(("VGG [25], v2",), (24.8, 7.5)),
        Row(("VGG [25], v5",), (24.4, 7.1)),
        Row(("Baidu",), (24.88, 7.42)),
        Row(("A, ReLU",), (24.02, 6.51), "a-relu", test=DENSE),
        Row(("A, PReLU",), (22.97, 6.28), "a-prelu", test=DENSE),
        Row(("B, PReLU",), (22.85, 6.27), "b-prelu", test=DENSE),
        Row(("C, PReLU",), (21.59, 5.71), "c-prelu", test=DENSE),
    ),
)

TABLE7 = ErrorTable(
    name="table7",
    title="Table 7: several models together",
    head=("models",),
    rows=(
        Row(("MSRA [11], in competition",), (None, 8.06)),
        Row(("VGG [25], in competition",), (None, 7.32)),
        Row(("GoogLeNet, in competition",), (None, 6.66)),
        Row(("VGG [25], v5",), (None, 6.8)),
        Row(("Baidu",), (None, 5.98)),
        Row(("PReLU-nets, six models",), (None, 4.94), ENSEMBLE, test=DENSE),
    ),
    note="The paper's numbers are for the test set, ours for the validation set. The paper has six "
    "models, one of them C; ours are C, B with two seeds and A with three, dense at three scales, "
    "equally weighted. Human: 5.1 % (Russakovsky et al.).",
)

SEC22 = ErrorTable(
    name="sec22",
    title="Sec. 2.2: initialisation, fully trained models, ReLU",
    head=("model", "initialisation"),
    rows=(
        Row(("14 layers", "Xavier"), (33.90, 13.44), "small14-relu-xavier"),
        Row(("14 layers", "He"), (33.82, 13.34), "small14-relu"),
        Row(("30 layers", "He"), (38.56, 16.59), "small30-relu"),
    ),
    note="The paper does not name the views; ours are ten, at the scale of validation.",
)

ERROR_TABLES = (TABLE2, TABLE4, TABLE5, TABLE6, TABLE7, SEC22)

FIG2 = CurveFigure(
    name="fig2",
    title="Fig. 2: model B (22 layers), ReLU, with He and Xavier initialisation",
    curves=(("He", "fig2-he"), ("Xavier", "fig2-xavier")),
    claim="Both converge; He starts to reduce the error earlier.",
)
FIG3 = CurveFigure(
    name="fig3",
    title="Fig. 3: the 30-layer model, ReLU, with He and Xavier initialisation",
    curves=(("He", "fig3-he"), ("Xavier", "fig3-xavier")),
    claim="He converges; Xavier stalls, with diminishing gradients.",
)
SEC22_DEPTH = CurveFigure(
    name="sec22-depth",
    title="Sec. 2.2: model B with 3, 6 and 9 more convolutions, ReLU, He",
    curves=tuple((f"B + {n}" if n else "B", f"b-extra{n}") for n in (0, 3, 6, 9)),
    claim="With more layers training and test error are worse in the first 20 epochs.",
)
CURVE_FIGURES = (FIG2, FIG3, SEC22_DEPTH)

# Table 1: learned slopes of the 14-layer model, (channel-shared, mean of channel-wise).
SLOPES = {
    "conv1": (0.681, 0.596),
    "conv2_1": (0.103, 0.321),
    "conv2_2": (0.099, 0.204),
    "conv2_3": (0.228, 0.294),
    "conv2_4": (0.561, 0.464),
    "conv3_1": (0.126, 0.196),
    "conv3_2": (0.089, 0.152),
    "conv3_3": (0.124, 0.145),
    "conv3_4": (0.062, 0.124),
    "conv3_5": (0.008, 0.134),
    "conv3_6": (0.210, 0.198),
    "fc1": (0.063, 0.074),
    "fc2": (0.031, 0.075),
}
SLOPE_EXPERIMENTS = ("small14-prelu-shared", "small14-prelu")

# Table 3: model, weight layers, operations x 1e10. The paper gives no number of parameters.
ARCHITECTURES = (("vgg19", 19, 1.96), ("A", 19, 1.90), ("B", 22, 2.32), ("C", 22, 5.30))

# Fig. 6, on the test set: classes with no top-5 error at all.
FIG6_AT_ZERO = 113
# Fig. 7, against the team's entry of 2014: classes better, equal, worse.
FIG7_COUNTS = (824, 127, 49)
FIG7_BASELINE = "a-relu"  # what we compare with instead, tested as DENSE
