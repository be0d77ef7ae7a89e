"""What `--volume` takes: a case folder, one file of a case, a 4D file, channel=file words; and what it took, in words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.data.reading import count_volumes
from medseg_diff.data.tables.manifest import CASE_NAME, IMAGE_SUFFIXES, Case
from medseg_diff.errors import ImageError, UsageError

# How datasets call a channel at the end of a file's name: plain and BIDS, BraTS 2018 to 2021, BraTS 2023.
ALIASES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
    "seg": ("seg",),
}
NNUNET = re.compile(r"(?:(?P<case>.*)_)?(?P<number>\d{4})")


class MissingChannels(ImageError):
    """A case lacks channels of the model; `present` are all that it has, as far as their names tell."""

    def __init__(self, found: str, *, fix: str, case: str, present: Sequence[str]) -> None:
        super().__init__(found, fix=fix, case=case)
        self.present = tuple(present)

    def with_fix(self, fix: str) -> "MissingChannels":
        """The same with other advice."""
        return MissingChannels(self.found, fix=fix, case=self.case or "", present=self.present)


@dataclass(frozen=True)
class Found:
    """One file that names its channel: `prefix` is what stands before it (empty in `t1.nii.gz`)."""

    channel: str
    prefix: str
    path: Path


def find_case(volumes: Sequence[str], channels: Sequence[str], *, fill_missing: bool = False) -> tuple[Case, str]:
    """The case that the words of `--volume` mean for a model of `channels`, and a sentence that says what was taken.

    With `fill_missing` some channels may be missing; then the sentence says so.
    Raises: UsageError where the words make no sense, ImageError where a file is not there, MissingChannels.
    """
    words = [word for word in volumes if _is_assignment(word, channels)]
    if words and len(words) == len(volumes):
        return _from_words(words, channels, fill_missing=fill_missing)
    if len(volumes) != 1:
        raise UsageError(
            f"--volume was given {len(volumes)} times", fix="write channel=file each time, as in t1=a.nii.gz"
        )
    if not volumes[0].strip():
        raise UsageError("--volume is empty", fix="give the folder or a file of a case")
    path = Path(volumes[0])
    if path.is_dir():
        return _from_folder(path, channels, fill_missing=fill_missing)
    if not path.is_file():
        raise ImageError("no such file or folder", fix="check the path given to --volume", file=path.name)
    return _from_file(path, channels, fill_missing=fill_missing)


def recognise(paths: Iterable[Path], channels: Sequence[str], *, numbered: bool = True) -> list[Found]:
    """The files whose names end in one of `channels` or in `seg`, or (`numbered`) in nnU-Net's number of a channel."""
    found = []
    for path in sorted(paths):
        stem = stem_of(path)
        if stem is None:
            continue
        for channel in (*channels, "seg"):
            names = "|".join(re.escape(name) for name in ALIASES.get(channel, (channel.lower(),)))
            if match := re.fullmatch(rf"(?:(?P<case>.*)[_-])?(?:{names})", stem, re.IGNORECASE):
                found.append(Found(channel, match["case"] or "", path))
        match = NNUNET.fullmatch(stem) if numbered else None
        if match and int(match["number"]) < len(channels):
            found.append(Found(channels[int(match["number"])], match["case"] or "", path))
    return found


def stem_of(path: Path) -> str | None:
    """The name of an image without its suffix; None for what is no image, hidden, or the second half of a pair."""
    name = path.name.lower()
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return None if name.startswith(".") or suffix == ".img" else path.name[: -len(suffix)]
    return None


def case_name(text: str) -> str:
    """`text` as a case name: what may not stand in one becomes `_`."""
    name = re.sub(r"[^\w.-]", "_", text)[:64].lstrip(".-").rstrip(".")
    return name if CASE_NAME.fullmatch(name) else "case"


def _is_assignment(word: str, channels: Sequence[str]) -> bool:
    """A path may hold a `=` too, but not after the name of a channel."""
    key, equals, value = word.partition("=")
    return bool(equals and value) and (_channel_called(key, channels) is not None or not Path(word).exists())


def _channel_called(name: str, channels: Sequence[str]) -> str | None:
    return next((c for c in channels if name.lower() in ALIASES.get(c, (c.lower(),))), None)


def _from_words(words: Sequence[str], channels: Sequence[str], *, fill_missing: bool) -> tuple[Case, str]:
    images: dict[str, Path] = {}
    for word in words:
        key, _, value = word.partition("=")
        channel = _channel_called(key, channels)
        if channel is None:
            raise UsageError(f"`{key}` is no channel of the model", fix=f"its channels are {', '.join(channels)}")
        if channel in images:
            raise UsageError(f"channel {channel} is given twice", fix="give each channel once")
        images[channel] = Path(value).absolute()
        if not images[channel].exists():
            raise ImageError("no such file", fix="check the path", channel=channel, file=images[channel].name)
    missing = [channel for channel in channels if channel not in images]
    if missing and not fill_missing:
        raise UsageError(f"no file is given for {', '.join(missing)}", fix=f"add {missing[0]}=FILE")
    channels = [channel for channel in channels if channel in images]
    if len({path.resolve() for path in images.values()}) < len(images):
        raise UsageError("one file is given for two channels", fix="give each channel its own file")
    first = images[channels[0]]
    stem = stem_of(first) or first.name
    prefix = next((found.prefix for found in recognise([first], channels)), stem)
    taken = ", ".join(f"{channel}={images[channel].name}" for channel in channels) + _lacks(missing)
    return _case(prefix or first.parent.name, {c: images[c] for c in channels}), f"took the files named: {taken}"


def _lacks(missing: Sequence[str]) -> str:
    return f"; lacks {', '.join(missing)}" if missing else ""


def _from_folder(folder: Path, channels: Sequence[str], *, fill_missing: bool) -> tuple[Case, str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    images = [path for path in files if stem_of(path) is not None]
    if not images and files and len(channels) == 1:
        sentence = f"took folder {folder.name} as one DICOM series, {channels[0]}"
        return _case(folder.name, {channels[0]: folder.absolute()}), sentence
    series = {c: p for p in folder.iterdir() if p.is_dir() and (c := _channel_called(p.name, channels))}
    missing = [channel for channel in channels if channel not in series]
    if not images and series and (fill_missing or not missing):
        named = {channel: series[channel].absolute() for channel in channels if channel in series}
        sentence = f"took the folders of {folder.name} as DICOM series, by their names{_lacks(missing)}"
        return _case(folder.resolve().name, named), sentence
    found = recognise(images, channels)
    name = folder.resolve().name
    return _complete(found, channels, folder, name=name, listed=images, fill_missing=fill_missing)


def _from_file(path: Path, channels: Sequence[str], *, fill_missing: bool) -> tuple[Case, str]:
    volumes = count_volumes(path)
    stem = stem_of(path) or path.name
    if volumes > 1:
        if volumes != len(channels):
            found = f"holds {volumes} volumes, the model has {len(channels)} channels ({', '.join(channels)})"
            raise ImageError(found, fix="give a 4D file with these channels in this order", file=path.name)
        case = Case(case_name(stem), case_name(stem), stack=path.absolute(), stack_channels=tuple(channels))
        return case, f"took {path.name} as 4D, its volumes as {', '.join(channels)}"
    named = recognise([path], channels)
    if len(channels) == 1:
        other = [item for item in recognise([path], tuple(ALIASES), numbered=False) if item.channel not in channels]
        if other and not named:
            fix = f"if it really is, write {channels[0]}={path.name}"
            raise ImageError(f"is named {other[0].channel}, the model takes {channels[0]}", fix=fix, file=path.name)
        prefix = named[0].prefix if named else stem
        return _case(
            prefix or path.absolute().parent.name, {channels[0]: path.absolute()}
        ), f"took {path.name} as {channels[0]}"
    if not named:
        fix = f"give its folder, or channel=file for each of {', '.join(channels)}"
        raise ImageError("does not say which channel it is", fix=fix, file=path.name)
    siblings = [p for p in path.parent.iterdir() if p.is_file() and stem_of(p) is not None]
    ours = [item for item in recognise(siblings, channels) if item.prefix == named[0].prefix]
    name = named[0].prefix or path.absolute().parent.name
    return _complete(ours, channels, path.parent, name=name, listed=siblings, fill_missing=fill_missing)


def _complete(
    found: Sequence[Found],
    channels: Sequence[str],
    folder: Path,
    *,
    name: str,
    listed: Sequence[Path],
    fill_missing: bool,
) -> tuple[Case, str]:
    """One file for each channel (of some, with `fill_missing`), or why not."""
    place = {"case": case_name(name)}
    files: dict[str, Path] = {}
    for item in found:
        if item.channel in files:
            both = f"{files[item.channel].name} and {item.path.name} both look like {item.channel}"
            raise ImageError(both, fix=f"say which, as in {item.channel}=FILE", **place)
        files[item.channel] = item.path.absolute()
    missing = [channel for channel in channels if channel not in files]
    if missing and (not fill_missing or len(missing) == len(channels)):
        there = {*files, *(item.channel for item in recognise(listed, list(ALIASES), numbered=False))}
        seen = ", ".join(sorted(path.name for path in listed)[:8]) or "no image"
        raise MissingChannels(
            f"{', '.join(missing)} not found (there: {seen})",
            fix=f"add it, name it as in {missing[0]}=FILE, or choose a model of other channels",
            present=[c for c in dict.fromkeys([*channels, *ALIASES]) if c in there and c != "seg"],
            **place,
        )
    images = {channel: files[channel] for channel in channels if channel in files}
    taken = ", ".join(path.name for path in images.values())
    sentence = f"took {taken} from folder {folder.resolve().name}{_lacks(missing)}"
    return _case(name, images, seg=files.get("seg")), sentence


def _case(name: str, images: dict[str, Path], *, seg: Path | None = None) -> Case:
    return Case(case_name(name), case_name(name), images=images, seg=seg)
