"""Images to pixel values in [-1, 1] and back.

The base class is that of transformers for what it does well: saving, loading, ``AutoImageProcessor``. The way of the pixels is
our own, because that of the library's Pillow backend alters some without a word (5.23, each tried): an image given by its
path loses its transparency instead of being put on white, 16-bit images are clipped to 255, and floats in [0, 1] are divided
by 255 once more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import INIT_SERVICE_KWARGS, BaseImageProcessor

from mmar.config import ImageTokensConfig
from mmar.processing.errors import located

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R 601, as Pillow."""

DataFormat = Literal["channels_first", "channels_last"]


class MMARImagesKwargs(TypedDict, total=False):
    """Options of the constructor, which :meth:`from_pretrained` may replace."""

    image_size: int
    channels: int
    do_resize: bool
    resample: str


class MMARImageProcessor(BaseImageProcessor):
    """Square images of one size.

    Args:
        image_size: Side, pixels.
        channels: 3 for RGB, 1 for grey.
        do_resize: Scale the shorter side to ``image_size`` and crop the centre; without it another size is an error.
        resample: bicubic or lanczos.
        **service: What transformers writes into the file; anything else is refused.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as transformers spells it
    valid_kwargs = MMARImagesKwargs

    def __init__(
        self,
        image_size: int = 256,
        channels: int = 3,
        do_resize: bool = True,
        resample: str = "bicubic",
        **service: Any,
    ) -> None:
        unknown = sorted(set(service) - set(INIT_SERVICE_KWARGS))
        if unknown:
            raise ValueError(f"options must be among {', '.join(MMARImagesKwargs.__annotations__)}, got {', '.join(unknown)}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels}")
        if resample not in RESAMPLING:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLING)}, got {resample!r}")
        super().__init__()
        self.image_size, self.channels, self.do_resize, self.resample = image_size, channels, do_resize, resample

    def preprocess(
        self,
        images: Any,
        input_data_format: DataFormat | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Images to ``pixel_values (B, C, H, W)`` float32 in [-1, 1]; 0 is -1 and 255 is 1.

        Args:
            images: One image or a list (of lists), in order: Pillow images, paths, and arrays or tensors ``(H, W)``,
                ``(C, H, W)``, ``(H, W, C)`` or a batch of these with an axis in front; uint8, or floats in [0, 1]. Files and
                Pillow images are turned upright by their EXIF tag; of an animation the first frame counts.
            input_data_format: channels_first or channels_last, where the shape of an array does not tell.
            return_tensors: pt or np.

        Raises:
            TypeError: If something is no image, or an array has another dtype.
            ValueError: If an image is empty, has a mode, shape, size or value that is not allowed, or there is none.
            FileNotFoundError: If a path leads nowhere.
        """
        flat = list(_flat(self.fetch_images(images)))
        if not flat:
            raise ValueError("images must hold at least one image, got none")
        pixels = []
        for i, image in enumerate(flat):
            with located(f"images[{i}]"):
                pixels.append(self._pixels(image, input_data_format))
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)  # (B, C, H, W)

    def fetch_images(self, images: Any) -> Any:
        """Images as Pillow images or arrays of 3 axes, in lists as they came; a batch of arrays is a list.

        Unlike the library's, it leaves transparency in place.
        """
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | os.PathLike):
            return _opened(images)
        if isinstance(images, Tensor):
            images = images.detach().cpu()
            images = (images.float() if images.is_floating_point() else images).numpy()
        if isinstance(images, np.ndarray):
            return _arrays(images)
        if isinstance(images, Image.Image):
            return images
        raise TypeError(f"images must be Pillow images, paths, arrays or tensors, got {type(images).__name__}")

    @staticmethod
    def to_pil(pixels: Tensor | np.ndarray) -> list[Image.Image]:
        """Pixel values to 8-bit images, each value to the nearest of the 256.

        Values outside [-1, 1] become 0 or 255: decoders overshoot a little, and an image cannot. The exact inverse of
        :meth:`preprocess` on images of the right size.

        Args:
            pixels: ``(B, C, H, W)`` float, C = 1 or 3.

        Raises:
            TypeError: If they are not floating point.
            ValueError: If the shape is another one, or a value is NaN or infinite.
        """
        pixels = torch.as_tensor(pixels)
        if not pixels.is_floating_point():
            raise TypeError(f"pixels must be floating point in [-1, 1], got {pixels.dtype}; 8-bit values need Image.fromarray")
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape[1:]:
            raise ValueError(f"pixels must have shape (B, 1 or 3, H, W), got {tuple(pixels.shape)}")
        if not bool(pixels.isfinite().all()):
            raise ValueError("pixels must be finite, got NaN or infinity; look at the sampler and the decoder")
        values = ((pixels.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [_image(value) for value in values.numpy()]

    def _pixels(self, image: Image.Image | np.ndarray, data_format: DataFormat | None) -> np.ndarray:
        """``(C, H, W)`` float32 in [-1, 1]."""
        if isinstance(image, Image.Image):
            planes = _upright(image)
        else:
            array = _channels_first(image, data_format)
            planes = _image(array) if array.dtype == np.uint8 else array
        if isinstance(planes, np.ndarray):
            return 2 * self._fit_floats(_with_channels(planes, self.channels)) - 1
        fitted = self._fit(_with_mode(planes, "RGB" if self.channels == 3 else "L"))
        values = np.asarray(fitted, dtype=np.float32).reshape(self.image_size, self.image_size, self.channels)
        return values.transpose(2, 0, 1) / np.float32(127.5) - 1

    def _fit(self, image: Image.Image) -> Image.Image:
        size = (self.image_size, self.image_size)
        if image.size == size:
            return image
        if not self.do_resize:
            raise ValueError(
                f"images must be {size[0]} x {size[1]} pixels where do_resize is False, got {image.width} x {image.height}; "
                "resize them, or set do_resize=True"
            )
        return ImageOps.fit(image, size, method=RESAMPLING[self.resample])  # scales the largest centred square: no seam

    def _fit_floats(self, planes: np.ndarray) -> np.ndarray:
        """As 8-bit images, plane by plane; both filters overshoot at edges, and Pillow clips that in 8 bits."""
        fitted = [np.asarray(self._fit(Image.fromarray(plane))) for plane in planes]
        return np.stack(fitted).clip(0, 1)


def pixel_channels(image: ImageTokensConfig) -> int:
    """1 or 3. A token of ``patches`` is a patch, all its pixels and colours; the other tokenizers read RGB."""
    patch = (image.image_size // image.grid) ** 2
    if image.tokenizer != "patches":
        return 3
    if image.channels not in (patch, 3 * patch):
        raise ValueError(f"image_config.channels must be {patch} (grey) or {3 * patch} (RGB) for patches, got {image.channels}")
    return 1 if image.channels == patch else 3


def _flat(images: Any) -> Iterator[Image.Image | np.ndarray]:
    if isinstance(images, list):
        for image in images:
            yield from _flat(image)
    else:
        yield images


def _arrays(array: np.ndarray) -> Any:
    if array.ndim == 4:
        return list(array)
    return Image.fromarray(_checked(array)) if array.ndim == 2 else array


def _opened(path: str | os.PathLike) -> Image.Image:
    if str(path).startswith(("http://", "https://", "data:")):
        raise ValueError(f"a path must lead to a local file, got {str(path)[:60]!r}; fetch it first and pass a Pillow image")
    if not os.path.isfile(path):  # False for a name that is too long as well
        raise FileNotFoundError(f"a path must lead to an image file, got {str(path)[:200]!r}")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)  # here: a copy of a TIFF loses the tag
    except UnidentifiedImageError as error:
        raise ValueError(f"a path must lead to an image that Pillow reads, got {str(path)!r}") from error


def _upright(image: Image.Image) -> Image.Image | np.ndarray:
    """A copy in memory, turned by its EXIF tag; mode F, the only float mode, as an array ``(1, H, W)``."""
    if 0 in image.size:
        raise ValueError(f"images must have at least one pixel, got {image.width} x {image.height}")
    if image.mode == "F":
        return _checked_floats(np.asarray(image)[None])
    if image.mode not in _EIGHT_BITS:
        raise ValueError(
            f"mode of an image must be {', '.join(_EIGHT_BITS)} or F in [0, 1], got {image.mode}; "
            "scale it: numpy.asarray(image, dtype='float32') / 65535 for 16 bits"
        )
    return ImageOps.exif_transpose(image)


def _with_mode(image: Image.Image, mode: str) -> Image.Image:
    """RGB or L, transparency on white."""
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or (image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if mode == "L" and image.mode not in ("1", "L"):
        image = image.convert("RGB")  # not every mode has a direct way
    return image.convert(mode)


def _image(array: np.ndarray) -> Image.Image:
    """``(C, H, W)`` uint8 to L, RGB or RGBA."""
    planes = np.ascontiguousarray(array.transpose(1, 2, 0))
    return Image.fromarray(planes[..., 0] if planes.shape[-1] == 1 else planes)


def _channels_first(array: np.ndarray, data_format: DataFormat | None) -> np.ndarray:
    """``(C, H, W)`` uint8, or float32 in [0, 1]."""
    if array.ndim != 3:
        raise ValueError(f"an image must have 2 or 3 axes, a batch 4, got shape {array.shape}")
    return np.moveaxis(_checked(array), _channel_axis(array.shape, data_format), 0)


def _checked(array: np.ndarray) -> np.ndarray:
    if 0 in array.shape:
        raise ValueError(f"images must have at least one pixel, got shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"dtype of an array must be uint8 or floating point in [0, 1], got {array.dtype}; convert it")
    return _checked_floats(array)


def _channel_axis(shape: tuple[int, ...], data_format: DataFormat | None) -> int:
    if data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format must be channels_first, channels_last or None, got {data_format!r}")
    possible = [axis for axis, name in ((0, "channels_first"), (-1, "channels_last")) if data_format in (None, name)]
    found = [axis for axis in possible if shape[axis] in (1, 3, 4)]
    if len(found) > 1:
        raise ValueError(f"input_data_format must say where the channels of shape {shape} are: channels_first or channels_last")
    if not found:
        raise ValueError(f"an array of 3 axes must have 1, 3 or 4 channels first or last, got {shape} ({data_format or 'any'})")
    return found[0]


def _checked_floats(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also where one is NaN
        raise ValueError(
            f"floating point images must lie in [0, 1] without NaN, got {low:g} to {high:g}; divide 8-bit values by 255, and "
            "map [-1, 1] by (x + 1) / 2"
        )
    return array.astype(np.float32)


def _with_channels(planes: np.ndarray, channels: int) -> np.ndarray:
    """``(1, 3 or 4, H, W)`` floats to ``channels`` planes, transparency on white."""
    if len(planes) == 4:
        planes = planes[:3] * planes[3] + (1 - planes[3])
    if len(planes) == channels:
        return planes
    return np.repeat(planes, 3, axis=0) if channels == 3 else np.tensordot(_LUMA, planes, 1)[None].clip(0, 1)
