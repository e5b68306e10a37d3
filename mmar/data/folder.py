"""A folder of images with their texts, as Hugging Face's ``imagefolder`` or as LLaVA's list has them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

from torch.utils.data import Dataset

from mmar.data.example import Example
from mmar.data.images import ImageLimits, read_image_file
from mmar.data.metadata import read_rows
from mmar.data.packed import PackedRecords
from mmar.data.records import check_utf8, relative_path, texts_of
from mmar.data.skipped import BadSample, Reason, SkipLimit, Skipped

METADATA = ("metadata.jsonl", "metadata.csv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files of a folder that must have metadata. A file that a record names may be called anything."""


class FolderDataset(Dataset[Example]):
    """Images and texts by index.

    Records are read and checked at once; images when they are asked for. :class:`mmar.data.stream.ExampleStream` shuffles and
    leaves out the images that cannot be used.

    Attributes:
        skipped: Records that are left out. Their images have no index.
        fingerprint: Differs for other records; images are not looked at.

    Args:
        folder: The paths in the records are relative to it.
        rows: Records, or what is wrong with them.
        limits: On images.
        max_share: Of the records that may be left out.
        strict: Raise at the first bad record instead of leaving it out.

    Raises:
        BadSample: If strict, and a record is bad.
        TooManySkipped: If more than ``max_share`` of them are.
        ValueError: If there are none.
    """

    def __init__(
        self,
        folder: Path,
        rows: Iterable[list[Any] | BadSample],
        *,
        limits: ImageLimits,
        max_share: float,
        strict: bool,
    ) -> None:
        SkipLimit(max_share)
        self.folder, self.limits, self.skipped = folder, limits, Skipped()
        self._records = PackedRecords(self._good(rows, strict))
        self.fingerprint = self._records.fingerprint
        self.skipped.check(max_share)
        if not len(self._records):
            raise ValueError(f"{str(folder)!r} must hold at least one image with a text, got none\n{self.skipped}")

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, limits: ImageLimits | None = None, max_share: float = 0.5, strict: bool = False
    ) -> Self:
        """Read a folder with ``metadata.jsonl`` or ``metadata.csv``, there or in sub-folders.

        ``file_name`` is relative to the metadata's own folder; ``text`` and ``conversations`` are as in
        :mod:`mmar.data.records`. Images that no metadata names are left out and counted. Hidden folders are not looked into.

        Args:
            folder: The folder.
            limits: On images.
            max_share: Of records and images without metadata that may be left out.
            strict: Raise at the first.

        Raises:
            FileNotFoundError: If there is no such folder, or no metadata.
            ValueError: If a folder has both kinds of metadata, or they cannot be read at all; and see the class.
        """
        root = _existing(folder)
        rows = _folder_rows(root)
        return cls(root, rows, limits=limits or ImageLimits(), max_share=max_share, strict=strict)

    @classmethod
    def from_llava(
        cls,
        file: str | Path,
        folder: str | Path,
        *,
        limits: ImageLimits | None = None,
        max_share: float = 0.5,
        strict: bool = False,
    ) -> Self:
        """Read LLaVA's list (.json, or .jsonl): ``image`` is relative to ``folder``, ``conversations`` as in its instructions.

        An image may have several records, as in LLaVA's own data; the same record twice is left out. Conversations without an
        image are left out as well.

        Args:
            file: The list.
            folder: Of the images.
            limits: On images.
            max_share: Of the records that may be left out.
            strict: Raise at the first bad one.

        Raises:
            FileNotFoundError: If the file or the folder is not there.
            ValueError: If the file is no such list; and see the class.
        """
        root = _existing(folder)
        if not Path(file).is_file():
            raise FileNotFoundError(f"file must be a list of records in JSON, got {str(file)!r}")
        rows = _llava_rows(Path(file))
        return cls(root, rows, limits=limits or ImageLimits(), max_share=max_share, strict=strict)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Decode an image.

        Raises:
            BadSample: If it cannot be used.
            IndexError: If there is no such index.
        """
        key, path, where, caption, captions, turns = self._records[index]
        image = read_image_file(self.folder / path, where, self.limits)
        return Example(key, image, caption, tuple((q, a) for q, a in turns), tuple(captions), {"source": where})

    def _good(self, rows: Iterable[list[Any] | BadSample], strict: bool) -> Iterator[list[Any]]:
        for row in rows:
            if not isinstance(row, BadSample):
                self.skipped.delivered += 1
                yield row
            elif strict:
                raise row
            else:
                self.skipped.add(row)


def _existing(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"folder must be an existing folder, got {str(folder)!r}")
    return Path(folder)


def _record(key: str, path: str, where: str, record: dict[str, Any]) -> list[Any]:
    check_utf8(path, where)  # the folder's name too
    texts = texts_of(record, where)
    return [key, path, where, texts.caption, texts.captions, texts.turns]


def _folder_rows(root: Path) -> Iterator[list[Any] | BadSample]:
    """Records of all metadata, then the images that they do not name."""
    images, metadata, unreadable = _walk(root)
    if not metadata:
        raise FileNotFoundError(
            f"folder must hold {' or '.join(METADATA)}, there or in sub-folders, got none in {str(root)!r}; "
            'a line is {"file_name": "0001.jpg", "text": "a caption"}'
        )
    yield from unreadable
    named: set[str] = set()
    for file in metadata:
        for where, record in read_rows(root / file, file.as_posix()):
            try:
                yield _named_record(file.parent, where, record, named)
            except BadSample as bad:
                yield bad
    for image in images:
        if image not in named:
            yield BadSample.of(Reason.NO_METADATA, image, f"{' or '.join(METADATA)} must name it")


def _named_record(folder: PurePosixPath, where: str, record: dict[str, Any] | BadSample, named: set[str]) -> list[Any]:
    if isinstance(record, BadSample):
        raise record
    path = (folder / relative_path(record.get("file_name"), where)).as_posix()
    if path in named:
        raise BadSample.of(Reason.DUPLICATE, where, f"{path!r} must be named once; several captions are a list in text")
    named.add(path)  # whatever its texts are: it is not without metadata
    return _record(path, path, where, record)


def _llava_rows(file: Path) -> Iterator[list[Any] | BadSample]:
    """Keys are the image's name and, from its second record on, a number."""
    seen: dict[str, list[int]] = {}
    for where, record in read_rows(file, file.name):
        try:
            if isinstance(record, BadSample):
                raise record
            path = relative_path(record.get("image"), where)
            row = _record(path, path, where, record)
            content = hash((row[3], row[4], row[5]))
            if content in seen.setdefault(path, []):
                raise BadSample.of(Reason.DUPLICATE, where, f"{path!r} must not have the same texts twice")
            row[0] = f"{path}#{len(seen[path])}" if seen[path] else path
            seen[path].append(content)
            yield row
        except BadSample as bad:
            yield bad


def _walk(root: Path) -> tuple[list[str], list[PurePosixPath], list[BadSample]]:
    """Images and metadata relative to the root, in order of their names, and folders that cannot be looked into."""
    images: list[str] = []
    metadata: list[PurePosixPath] = []
    errors: list[OSError] = []
    for path, folders, files in os.walk(root, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = PurePosixPath(Path(path).relative_to(root).as_posix())
        found = [name for name in METADATA if name in files]
        if len(found) > 1:
            raise ValueError(f"a folder must hold {' or '.join(METADATA)}, got both in {path!r}; remove one")
        metadata += [here / name for name in found]
        images += [(here / name).as_posix() for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)]
    return images, metadata, [BadSample.of(Reason.UNREADABLE_FILE, str(e.filename), str(e.strerror)) for e in errors]
