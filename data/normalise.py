"""From pixel values to the network's input: subtracting the mean, one colour or an image.

The paper says only "per-pixel mean". The mean image here is the mean of the training images
as validation sees them: the centre crop of an image whose shorter side is resized to 256 for a crop
of 224 (other crops in proportion). Caffe's is of 256 x 256 images, and cropped with each image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

# Mean RGB of the training set, pixel values 0..255, as Caffe distributes it.
CHANNEL_MEAN = (122.679, 116.669, 104.007)


def load_mean(spec: str, channel_mean: Sequence[float] = CHANNEL_MEAN) -> Tensor:
    """The mean that data.mean names, in float32 RGB pixel values.

    `channel`: one colour, [1, 1, 3]. Otherwise a .npy file from `scripts/prepare_imagenet.py mean`,
    [S, S, 3]. Raises UserError if there is no such file or it holds no mean image.
    """
    if spec == "channel":
        return torch.tensor(channel_mean, dtype=torch.float32).reshape(1, 1, 3)
    hint = "make it with `scripts/prepare_imagenet.py mean`, or type data.mean=channel"
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UserError(f"no mean image at data.mean={spec}: {hint}")
    try:
        with open(path, "rb") as file:
            mean = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.mean={spec} is not a .npy file: {hint}") from error
    if mean.ndim != 3 or mean.shape[0] != mean.shape[1] or mean.shape[2] != 3:
        shape = " x ".join(map(str, mean.shape))
        raise UserError(f"data.mean={spec} has the shape {shape} instead of S x S x 3: {hint}")
    if mean.dtype.kind not in "fiu" or not np.all((mean >= 0) & (mean <= 255)):
        raise UserError(f"data.mean={spec} has values outside 0..255: {hint}")
    return torch.from_numpy(mean.astype(np.float32))


def warp_mean(mean: Tensor, height: int, width: int) -> Tensor:
    """A mean image [S, S, 3] warped bilinearly to [height, width, 3], as in [11].

    One colour, [1, 1, 3], is returned as it is: it fits every size.
    """
    if mean.shape[:2] in ((1, 1), (height, width)):
        return mean
    planes = mean.permute(2, 0, 1)[None]
    warped = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return warped[0].permute(1, 2, 0).contiguous()


def network_input(images: Tensor, mean: Tensor, colours: Tensor | None = None) -> Tensor:
    """uint8 RGB [B, H, W, 3] -> float32 [B, 3, H, W] (channels last in memory), mean subtracted.

    mean: [1, 1, 3] or [H, W, 3]; colours: [B, 3], the colour change of [16], which is added to the
    pixel values (Sec. 3). The values keep their scale, about -128 to 128: nothing divides them.
    """
    x = images.to(torch.float32) - mean
    if colours is not None:
        x = x + colours[:, None, None, :]
    return x.permute(0, 3, 1, 2)
