"""A task of the Medical Segmentation Decathlon → rows of a manifest: 4D images whose volumes dataset.json names.

Brain tumours (Task01) have other labels than BraTS: 1 oedema, 2 non-enhancing tumour, 3 enhancing tumour; the whole
tumour is the same. Cases of `imagesTs` are for testing; the Decathlon keeps their masks to itself.
"""

from pathlib import Path

from medseg_diff.data.tables.inputs import case_name, stem_of
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted
from medseg_diff.data.tables.sources.dataset_json import columns_by_number, say_labels
from medseg_diff.data.tables.sources.nnunet import PARTS, images_in, labels_in, say_unlabelled


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row a case. Raises: ImageError where volumes have no names or there is no image, Problems of all cases."""
    columns = columns_by_number(folder)
    cases = Cases(folder, wanted, columns)
    for part, split in PARTS.items():
        labels, unlabelled = labels_in(folder / f"labels{part}"), []
        for path in images_in(folder / f"images{part}"):
            name = stem_of(path) or path.name
            seg = {"seg": labels[name]} if name in labels else {}
            volumes = {"stack_channels": ",".join(columns)} if len(columns) > 1 else {}
            cases.add(case_name(name), {"stack" if volumes else columns[0]: path} | seg, split=split, **volumes)
            unlabelled += [] if seg else [name]
        if not split:
            say_unlabelled(unlabelled)
    found = cases.rows(nothing="no image", fix="give the folder of a task, with imagesTr/CASE.nii.gz")
    say_labels(folder)
    return found
