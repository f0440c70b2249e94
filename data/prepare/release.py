"""What is known of ImageNet 2012 as it is distributed: MD5 sums, numbers of images, odd files."""

from dataclasses import dataclass

from data.sources.imagenet import DEVKIT, NUM_IMAGES, TARS

PNG, CMYK, BAD_EXIF = "PNG named JPEG", "CMYK", "corrupt EXIF"
AT_LEAST = (BAD_EXIF,)  # readers differ in how much EXIF they find corrupt, so more may be found


@dataclass(frozen=True)
class Release:
    """A data set as it is distributed. A split that is not mentioned is not compared."""

    md5: dict[str, str]  # file name -> hex sum
    num_classes: int
    num_images: dict[str, int]  # split -> images
    per_class: dict[str, tuple[int, int]]  # split -> images of a class, (fewest, most)
    odd_images: dict[str, list[str]]  # of train: kind -> names without their endings


_CMYK = """n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752
n03018349_4028 n03062245_4620 n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228
n03633091_5218 n03710637_5125 n03961711_5286 n04033995_2932 n04258138_17003 n04264628_27969
n04336792_7448 n04371774_5854 n04596742_4225 n07583066_647 n13037406_4650"""

# The sums are those of image-net.org's download page. Two releases of the test set exist: of 2012
# and, with some images exchanged, of October 2019.
ILSVRC2012 = Release(
    md5={
        TARS["train"][0]: "1d675b47d978889d74fa0da5fadfb00e",
        TARS["val"][0]: "29b22e2961454d5413ddabcf34fc5622",
        TARS["test"][0]: "e1b8681fff3d63731c599df9b4b6fc02",
        TARS["test"][1]: "fe64ceb247e473635708aed23ab6d839",
        DEVKIT: "fa75699e90414af021442c21a62c3abf",
    },
    num_classes=1000,
    num_images=NUM_IMAGES,
    per_class={"train": (732, 1300), "val": (50, 50)},
    odd_images={PNG: ["n02105855_2933"], CMYK: _CMYK.split(), BAD_EXIF: ["n04152593_17460"]},
)
