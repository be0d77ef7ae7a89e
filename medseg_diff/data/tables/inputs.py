"""What `--volume` takes: a case folder, one file of a case, a 4D file, channel=file words; and what it took, in words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg_diff.data.reading import count_volumes
from medseg_diff.data.tables.case import CASE_NAME, IMAGE_SUFFIXES, TWIN, Case
from medseg_diff.data.tables.channel_names import NAME_THEM, Names, channel_called, known_channels, names_of_numbers
from medseg_diff.errors import ImageError, UsageError

SHOWN = 5  # names of folders
WORD = re.compile(r"(?:^|[ _-])(?!.[_ -])")  # where the last word of a name may begin; `t_1` may be a point in time
NUMBERED = re.compile(r"(?:(?P<case>.*)_)?00(?P<number>\d\d)", re.ASCII)  # nnU-Net
CONTRAST = re.compile(r"(?:^|_)ce-[a-z0-9]+(?=_|$)", re.IGNORECASE)  # BIDS: of a T1 taken after contrast medium
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
SAY_WHICH = "keep one of them in the folder, or give every channel as channel=FILE"


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
    """One file that names its channel, or only numbers it: `prefix` is what stands before it (empty in `t1.nii.gz`)."""

    channel: str
    prefix: str
    path: Path


def find_case(
    volumes: Sequence[str], channels: Sequence[str], *, order: Sequence[str] = (), fill_missing: bool = False
) -> tuple[Case, str]:
    """The case that the words of `--volume` mean for a model of `channels`, and a sentence that says what was taken.

    `order` names channels that are only numbered, where no dataset.json does. With `fill_missing` some channels may be
    missing; then the sentence says so.
    Raises: UsageError where the words make no sense, ImageError where a file is not there or nothing says which channel
    it is, MissingChannels.
    """
    if not all(word.strip() for word in order):
        raise UsageError("--channels has an empty name", fix="write it as in --channels flair,t1,t1ce,t2")
    if volumes and all(_is_assignment(word, channels) for word in volumes):
        _refuse(order)
        return _from_words(volumes, channels, fill_missing=fill_missing)
    if len(volumes) != 1:
        found = f"--volume was given {len(volumes)} times"
        raise UsageError(found, fix="write channel=file each time, as in t1=a.nii.gz")
    if not volumes[0].strip():
        raise UsageError("--volume is empty", fix="give the folder or a file of a case")
    path = Path(volumes[0])
    if path.is_dir():
        return _from_folder(path, channels, order, fill_missing=fill_missing)
    if not path.is_file():
        raise ImageError("no such file or folder", fix="check the path given to --volume", file=path.name)
    if (count := count_volumes(path)) > 1:
        return _from_stack(path, count, channels, order, fill_missing=fill_missing)
    return _from_file(path, channels, order, fill_missing=fill_missing)


def recognise(paths: Iterable[Path], channels: Sequence[str]) -> list[Found]:
    """The files whose names end in a word for one of `channels`, or in `seg`; the longest word counts. No `healthy_t1`."""
    found = []
    for path in sorted(path for path in paths if not path.name.startswith(TWIN)):
        stem = stem_of(path) or ""
        for start in (mark.end() for mark in WORD.finditer(stem)):
            if channel := channel_called(stem[start:], (*channels, "seg")):
                found.append(_of_contrast(Found(channel, stem[: max(start - 1, 0)], path)))
                break
    return found


def _of_contrast(found: Found) -> Found:
    """T1 is `t1ce` where the name says so before its last word."""
    given = CONTRAST.search(found.prefix) if found.channel == "t1" else None
    return replace(found, channel="t1ce", prefix=CONTRAST.sub("", found.prefix)) if given else found


def one_each(found: Iterable[Found], *, case: str, fix: str) -> dict[str, Path]:
    """The file of each channel. Raises: ImageError where there are two."""
    files: dict[str, Path] = {}
    for item in found:
        if item.channel in files:
            both = f"{files[item.channel].name} and {item.path.name} both look like {item.channel}"
            raise ImageError(both, fix=fix, case=case_name(case))
        files[item.channel] = item.path
    return files


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
    return bool(equals and value) and (channel_called(key, channels) is not None or not Path(word).exists())


def _refuse(order: Sequence[str]) -> None:
    if order:
        found = "--channels names numbered files or the volumes of a 4D file, and --volume is neither"
        raise UsageError(found, fix="leave it out, or write channel=FILE")


def _from_words(words: Sequence[str], channels: Sequence[str], *, fill_missing: bool) -> tuple[Case, str]:
    files: dict[str, Path] = {}
    for word in words:
        key, _, value = word.partition("=")
        channel = channel_called(key, channels)
        if channel is None:
            raise UsageError(f"`{key}` is not a channel of the model", fix=f"its channels are {', '.join(channels)}")
        if channel in files:
            raise UsageError(f"channel {channel} is given twice", fix="give each channel once")
        files[channel] = Path(value).absolute()
        if not files[channel].exists():
            raise ImageError("no such file", fix="check the path", channel=channel, file=files[channel].name)
    images, missing = _in_order(files, channels)
    if missing and not fill_missing:
        raise UsageError(f"no file is given for {', '.join(missing)}", fix=f"add {missing[0]}=FILE")
    if len({path.resolve() for path in images.values()}) < len(images):
        raise UsageError("one file is given for two channels", fix="give each channel its own file")
    first = next(iter(images.values()))
    named = [*recognise([first], list(images)), *numbered([first])]
    name = named[0].prefix if named else stem_of(first) or first.name
    taken = ", ".join(f"{channel}={path.name}" for channel, path in images.items())
    return _case(name or first.parent.name, images), f"took the files named: {taken}{_lacks(missing)}"


def _from_folder(
    folder: Path, channels: Sequence[str], order: Sequence[str], *, fill_missing: bool
) -> tuple[Case, str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    images = [path for path in files if stem_of(path) is not None]
    name = folder.resolve().name
    if not images and files and len(channels) == 1:
        _refuse(order)
        sentence = f"took folder {folder.name} as one DICOM series, {channels[0]}"
        return _case(folder.name, {channels[0]: folder.absolute()}), sentence
    folders = [(channel_called(path.name, channels), path) for path in sorted(folder.iterdir()) if path.is_dir()]
    inside = [Found(channel, "", path.absolute()) for channel, path in folders if channel]
    series, missing = _in_order(one_each(inside, case=name, fix=SAY_WHICH) if not images else {}, channels)
    if series and (fill_missing or not missing):
        _refuse(order)
        sentence = f"took the folders of {folder.name} as DICOM series, by their names{_lacks(missing)}"
        return _case(name, series), sentence
    if series:
        there = f"the folders {', '.join(path.name for channel, path in folders if channel)}"
        fix = f"add it, as a folder {missing[0]}"
        raise _missing(missing, list(series), channels, there=there, fix=fix, case=name)
    if not images:
        raise _no_image(
            [path.name for _, path in folders if not path.name.startswith(".")], bool(files), channels, name
        )
    return _from_images(images, channels, order, name=name, fill_missing=fill_missing)


def _no_image(folders: Sequence[str], files: bool, channels: Sequence[str], name: str) -> ImageError:
    """What there is in place of images, and what that asks for."""
    if folders:
        found = f"holds no image, but the folders {', '.join(folders[:SHOWN])}{' …' if len(folders) > SHOWN else ''}"
        fix = "give the one with the images of the case; for many patients, make a table with `medseg-diff prepare`"
    elif files:
        found = "holds no file with the extension of an image"
        fix = f"convert them to NIfTI; for DICOM, give the folder of each series, as in {channels[0]}=FOLDER"
    else:
        found, fix = "is empty", "check the path given to --volume"
    return ImageError(found, fix=fix, file=name)


def _from_stack(
    path: Path, count: int, channels: Sequence[str], order: Sequence[str], *, fill_missing: bool
) -> tuple[Case, str]:
    names = names_of_numbers(path, channels, order)
    if len(names.words) != count:
        raise ImageError(f"holds {count} volumes, but {names.said}", fix=NAME_THEM, file=path.name)
    name = case_name(stem_of(path) or path.name)
    missing = [channel for channel in channels if channel not in names.channels]
    if missing and (not fill_missing or len(missing) == len(channels)):
        raise _missing(missing, names.channels, channels, there=names.said, fix=NAME_THEM, case=name)
    case = Case(name, name, stack=path.absolute(), stack_channels=names.channels)
    volumes = f"its volumes {', '.join(names.channels)} by {names.source}"
    return case, f"took {path.name} as 4D, {volumes}{_lacks(missing)}"


def _from_file(path: Path, channels: Sequence[str], order: Sequence[str], *, fill_missing: bool) -> tuple[Case, str]:
    def called(path: Path) -> list[Found]:
        return [*recognise([path], known_channels(channels)), *numbered([path])]

    mine = called(path)
    prefix = mine[0].prefix if mine else stem_of(path) or path.name
    name = prefix or path.absolute().parent.name
    if len(channels) == 1:
        found, names = _by_name_or_number([path], channels, order)
        if found and found[0].channel != channels[0]:
            what = f"is {found[0].channel} by {names.source}" if names else f"is named {found[0].channel}"
            fix = f"if it really is, write {channels[0]}={path.name}"
            raise ImageError(f"{what}, the model takes {channels[0]}", fix=fix, file=path.name)
        by = f" by {names.source}" if names else ""
        return _case(name, {channels[0]: path.absolute()}), f"took {path.name} as {channels[0]}{by}"
    if path.name.lower().endswith(ARCHIVES) and not stem_of(path):
        raise ImageError("is an archive", fix="unpack it, and give the folder of the case", file=path.name)
    if not mine:
        fix = f"give its folder, or channel=file for each of {', '.join(channels)}"
        raise ImageError("does not say which channel it is", fix=fix, file=path.name)
    siblings = [p for p in path.parent.iterdir() if p.is_file() and any(item.prefix == prefix for item in called(p))]
    return _from_images(siblings, channels, order, name=name, fill_missing=fill_missing)


def _from_images(
    images: Sequence[Path], channels: Sequence[str], order: Sequence[str], *, name: str, fill_missing: bool
) -> tuple[Case, str]:
    """One file for each channel, or with `fill_missing` for some. Raises: what `_by_name_or_number` does, ImageError where a
    channel has two files, MissingChannels.
    """
    found, names = _by_name_or_number(images, channels, order)
    wanted = [item for item in found if item.channel in (*channels, "seg")]
    files = {channel: path.absolute() for channel, path in one_each(wanted, case=name, fix=SAY_WHICH).items()}
    taken, missing = _in_order(files, channels)
    if missing and (not fill_missing or not taken):
        there = ", ".join(sorted(path.name for path in images)[:8]) or "no image"
        there += f"; {names.said}" if names else ""
        fix = f"add it, name it as in {missing[0]}=FILE"
        raise _missing(missing, [item.channel for item in found], channels, there=there, fix=fix, case=name)
    which = ", ".join(f"{channel}={path.name}" if names else path.name for channel, path in taken.items())
    by = f" by {names.source}" if names else ""
    folder = next(iter(taken.values())).parent.resolve().name
    return _case(name, taken, seg=files.get("seg")), f"took {which} from folder {folder}{by}{_lacks(missing)}"


def _by_name_or_number(
    images: Sequence[Path], channels: Sequence[str], order: Sequence[str]
) -> tuple[list[Found], Names | None]:
    """What the files are by their own names, else by their numbers; then also the names of those.

    Raises: UsageError, ImageError where numbers have no names.
    """
    found, numbers = recognise(images, known_channels(channels)), numbered(images)
    if not numbers or any(item.channel != "seg" for item in found):
        _refuse(order)
        return found, None
    names = names_of_numbers(numbers[0].path, channels, order)
    for item in numbers:
        if int(item.channel) >= len(names.channels):
            raise ImageError(f"has number {item.channel}, but {names.said}", fix=NAME_THEM, file=item.path.name)
    return [*found, *(replace(item, channel=names.channels[int(item.channel)]) for item in numbers)], names


def numbered(paths: Iterable[Path]) -> list[Found]:
    """The files with nnU-Net's number of a channel, which stands in place of its name."""
    matches = [(path, NUMBERED.fullmatch(stem_of(path) or "")) for path in sorted(paths)]
    return [Found(match["number"], match["case"] or "", path) for path, match in matches if match]


def _missing(
    missing: Sequence[str], present: Sequence[str], channels: Sequence[str], *, there: str, fix: str, case: str
) -> MissingChannels:
    return MissingChannels(
        f"{', '.join(missing)} not found (there: {there})",
        fix=f"{fix}, or choose a model for other channels",
        case=case_name(case),
        present=[channel for channel in known_channels(channels) if channel in present],
    )


def _in_order(files: Mapping[str, Path], channels: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The files of the channels that have one, and the channels that have none."""
    missing = [channel for channel in channels if channel not in files]
    return {channel: files[channel] for channel in channels if channel in files}, missing


def _lacks(missing: Sequence[str]) -> str:
    return f"; lacks {', '.join(missing)}" if missing else ""


def _case(name: str, images: dict[str, Path], *, seg: Path | None = None) -> Case:
    return Case(case_name(name), case_name(name), images=images, seg=seg)
