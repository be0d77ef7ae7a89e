"""Bad inputs in processes of their own: refused within 600 MB, whatever they say they hold; and how `validate` grows."""

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

MOST_MB = 600
SOUND = nibabel.Nifti1Image(np.random.default_rng(0).random((6, 7, 8), dtype=np.float32), np.eye(4)).to_bytes()


# The kernel's peak of this program alone: that of `getrusage` begins with the process that started it.
WATCHED = """
import json, sys, time
from medseg_diff import cli
try:
    cli.main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"peak_mb": int(peak.split()[1]) / 1024, "seconds": time.process_time()}))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak")


def run(*words: object) -> tuple[int, str, float, float]:
    """medseg-diff WORDS in a process → (exit code, stderr, peak memory in MB, seconds of processor time)."""
    done = subprocess.run([sys.executable, "-c", WATCHED, *map(str, words)], capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, done.stderr, found["peak_mb"], found["seconds"]


def header(shape, code, bits, **offset) -> bytes:
    out = bytearray(SOUND[:352])
    struct.pack_into("<8h", out, 40, len(shape), *shape, *(1,) * (7 - len(shape)))
    struct.pack_into("<2h", out, 70, code, bits)
    struct.pack_into("<f", out, 108, offset.get("offset", 352.0))
    return bytes(out)


def packed(path: Path, head: bytes, count: int, byte: bytes = b"\0") -> None:
    """A .gz of a header and `count` equal bytes, made without holding them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(packer.compress(head))
        for _ in range(count // 2**20 + 1):
            file.write(packer.compress(byte * 2**20))
        file.write(packer.flush())


def sparse(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def test_bombs_are_refused_within_memory(tmp_path):
    voxels = 800 * 800 * 800
    packed(tmp_path / "bomb.nii.gz", SOUND, 2**28)
    packed(tmp_path / "honest_bomb.nii.gz", header((800, 800, 800), 4, 16), 2**22)
    packed(tmp_path / "small_bomb.nii.gz", header((500, 500, 500), 2, 8), 125_000_000)
    packed(tmp_path / "ones.nii.gz", header((500, 500, 500), 2, 8), 125_000_000, b"\1")
    sparse(tmp_path / "hole.nii", header((800, 800, 800), 2, 8), 352 + voxels)
    sparse(tmp_path / "long_hole.nii", SOUND, 3 * 2**30)
    sparse(tmp_path / "endless_hole.nii", SOUND, 5 * 2**30)
    (tmp_path / "offset.nii").write_bytes(header((6, 7, 8), 16, 32, offset=1e30) + SOUND[352:])
    (tmp_path / "dims.nii.gz").write_bytes(gzip.compress(header((32767,) * 7, 64, 64) + SOUND[352:]))
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress(gzip.compress(bytes(2**27))))
    text = b"ObjectType = Image\nNDims = 3\nDimSize = 800 800 800\nElementType = MET_CHAR\nCompressedData = True\n"
    (tmp_path / "bomb.mha").write_bytes(text + b"ElementDataFile = LOCAL\n" + zlib.compress(bytes(2**24)))
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "cases.csv").write_text("case,t1\n" + "".join(f"{n},{name}\n" for n, name in enumerate(names)))
    code, err, peak_mb, _ = run("validate", "--data", tmp_path / "cases.csv")
    lines = err.splitlines()
    assert code == 3 and len(lines) == len(names) == 11, err
    assert all(line.startswith("error: [") and "Fix: " in line for line in lines)
    assert peak_mb < MOST_MB, peak_mb


def sparkling(path: Path, shape, *, lit: float) -> None:
    """A .nii.gz of doubles that packs as far as any file may: zeros, and a few voxels that are not."""
    rng, packer = np.random.default_rng(0), zlib.compressobj(6, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(packer.compress(header(shape, 64, 64)))
        for _ in range(shape[2]):
            values = (rng.random(shape[:2]) < lit) * rng.integers(1, 4, shape[:2])
            file.write(packer.compress(values.astype("<f8").tobytes()))
        file.write(packer.flush())


def test_a_file_takes_the_memory_of_its_voxels_and_little_more(tmp_path):
    shape = (384, 384, 200)
    sparkling(tmp_path / "a.nii.gz", shape, lit=0.008)
    raw, needed = 8 * np.prod(shape), 4 * np.prod(shape) / 2**20
    assert 150 < raw / (tmp_path / "a.nii.gz").stat().st_size < 250  # as far as that is read at all
    (tmp_path / "cases.csv").write_text("case,t1\n1,a.nii.gz\n")
    code, err, peak_mb, _ = run("validate", "--data", tmp_path / "cases.csv")
    assert code == 0, err
    (tmp_path / "cases.csv").write_text("case,t1\n")
    _, _, idle_mb, _ = run("validate", "--data", tmp_path / "cases.csv")
    assert peak_mb - idle_mb < needed + 100, (peak_mb, idle_mb, needed)  # slabs, and nibabel


def test_forty_bad_cases_take_the_memory_of_one(tmp_path):
    """What is told of them at the end holds on to no voxels."""
    voxels = np.random.default_rng(0).random((100, 100, 100))
    voxels[-1, -1, -1] = np.nan
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "a.nii")
    peaks = {}
    for count in (1, 40):
        for number in range(count):
            if not (tmp_path / f"{number}.nii").exists():
                (tmp_path / f"{number}.nii").write_bytes((tmp_path / "a.nii").read_bytes())
        rows = "".join(f"{number},{number}.nii\n" for number in range(count))
        (tmp_path / "cases.csv").write_text("case,t1\n" + rows)
        code, err, peaks[count], _ = run("validate", "--data", tmp_path / "cases.csv")
        assert code == 3 and "not finite" in err
    assert peaks[40] < peaks[1] + 20, peaks


TABLES = {
    "blank lines": b"case,t1\n" + b"\n" * (30 * 2**20),
    "commas": b"," * (30 * 2**20),
    "many rows": b"case,t1\n" + b"a,b\n" * (7 * 2**20),
    "bad rows": b"case,t1\n" + b"a\n" * (15 * 2**20),
    "one quote": b'case,t1\n"' + b"x\n" * (15 * 2**20),
    "too large": b"case,t1\n" + b"x" * (33 * 2**20),
}


@pytest.mark.parametrize("how", TABLES)
def test_endless_tables_are_refused_within_memory(tmp_path, how):
    (tmp_path / "cases.csv").write_bytes(TABLES[how])
    code, err, peak_mb, _ = run("validate", "--data", tmp_path / "cases.csv")
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err and len(err.splitlines()) <= 21
    assert peak_mb < MOST_MB, peak_mb


def test_bad_recipes_are_refused_within_memory(tmp_path):
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    (tmp_path / "odd.yaml").write_text(laughs)
    words = ("train-seg", "--data", tmp_path / "none.csv", "--config", tmp_path / "odd.yaml")
    code, err, peak_mb, _ = run(*words)
    assert code == 2 and "an anchor or alias" in err and len(err.splitlines()) == 1
    assert peak_mb < MOST_MB, peak_mb  # with torch and MONAI in it


@pytest.mark.soak
def test_a_thousand_cases_take_the_memory_of_a_hundred(tmp_path):
    rng, peaks = np.random.default_rng(0), {}
    rows = ["case,t1,t2,seg"]
    for number in range(1000):
        cells = [str(number)]
        for name in ("t1", "t2", "seg"):
            voxels = rng.random((24, 24, 24), dtype=np.float32)
            voxels = (voxels > 0.5).astype(np.uint8) if name == "seg" else voxels
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"{number}_{name}.nii")
            cells.append(f"{number}_{name}.nii")
        rows.append(",".join(cells))
    for count in (100, 1000):
        (tmp_path / "cases.csv").write_text("\n".join(rows[: count + 1]))
        code, err, peaks[count], seconds = run("validate", "--data", tmp_path / "cases.csv")
        assert code == 0, err
        print(json.dumps({"cases": count, "peak_mb": round(peaks[count], 1), "seconds": round(seconds, 2)}))
    assert peaks[1000] < peaks[100] + 20
