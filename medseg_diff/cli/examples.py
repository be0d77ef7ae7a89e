"""Commands that stand at the end of each verb's `--help`: they can be typed as they are, but for the names of files."""

EXAMPLES = {
    "": (
        "medseg-diff demo",
        "medseg-diff segment -i PATIENT_FOLDER -o results",
        "medseg-diff segment --help",
    ),
    "demo": (
        "medseg-diff demo",
        "medseg-diff demo -o somewhere --cases 40 --device cpu",
    ),
    "phantom": (
        "medseg-diff phantom phantoms --cases 40",
        "medseg-diff phantom phantoms --cases 60 --raters 3 --healthy 0.4 --seed 3",
        "medseg-diff phantom phantoms --cases 40 --scanners 3 --twins",
    ),
    "prepare": (
        "medseg-diff prepare BraTS2021 --source brats -o brats.csv",
        "medseg-diff prepare scans --source folders --channels t1,t2,flair --register t1 -o cases.csv",
        "medseg-diff prepare Dataset001 --source nnunet --channels flair",
    ),
    "validate": (
        "medseg-diff validate --data cases.csv",
        "medseg-diff validate --data cases.csv --json > report.json",
    ),
    "train-seg": (
        "medseg-diff train-seg --data cases.csv",
        "medseg-diff train-seg --data cases.csv --config quick/mask_logits -o runs/first training.steps=2000",
        "medseg-diff train-seg --data cases.csv --folds 5 -o runs/study",
    ),
    "train-anomaly": (
        "medseg-diff train-anomaly --data cases.csv",
        "medseg-diff train-anomaly --data cases.csv --config wolleb -o runs/wolleb",
        "medseg-diff train-anomaly --data cases.csv -o runs/wolleb --resume must",
    ),
    "train-synth": (
        "medseg-diff train-synth --data ukb.csv",
        "medseg-diff train-synth --data ukb.csv --config quick/brain_ldm_3d -o runs/ldm",
    ),
    "train-enhance": (
        "medseg-diff train-enhance --data ukb.csv",
        "medseg-diff train-enhance --data ukb.csv --config quick/cascade_x2 -o runs/fine",
    ),
    "enhance": (
        "medseg-diff enhance -i t1.nii.gz --model runs/fine -o enhanced",
        "medseg-diff enhance --data cases.csv --model runs/fine -o enhanced --draws 5",
    ),
    "tune": (
        "medseg-diff tune --model runs/first --data cases.csv",
        "medseg-diff tune --model runs/first --data cases.csv --steps 1,2,3 --members 5,10 --loss 0.01",
    ),
    "segment": (
        "medseg-diff segment -i PATIENT_FOLDER -o results",
        "medseg-diff segment -i t1=a.nii.gz -i t1ce=b.nii.gz -i t2=c.nii.gz -i flair=d.nii.gz -o results",
        "medseg-diff segment --data cases.csv --split test --model runs/first -o results --members 5",
    ),
    "anomaly": (
        "medseg-diff anomaly -i PATIENT_FOLDER/flair.nii.gz --model runs/anomaly -o anomalies",
        "medseg-diff anomaly --data cases.csv --split test -o anomalies --threshold healthy",
        "medseg-diff anomaly --data cases.csv --split val -o sweep --sweep",
    ),
    "synthesise": (
        "medseg-diff synthesise --model runs/ldm --age 63 --sex F --number 10 -o drawn",
        "medseg-diff synthesise --model runs/ldm --unconditional -o drawn",
        "medseg-diff synthesise --model runs/mask_to_mr --masks cases.csv --split test -o painted",
    ),
    "audit": (
        "medseg-diff audit --model runs/ldm --data ukb.csv -o audit",
        "medseg-diff audit --model runs/ldm --data ukb.csv --guidance 1,2,4 -o audit --keep-scans",
    ),
    "audit-volumes": (
        "medseg-diff audit-volumes audit --segmentations masks --structure ventricle_volume_ml=4,5,43,44 --by synthseg",
        "medseg-diff audit-volumes audit --segmentations totals --structure brain_volume_ml=1 --by totalsegmentator --json",
    ),
    "evaluate": (
        "medseg-diff evaluate --predictions results --data cases.csv",
        "medseg-diff evaluate --predictions results --compare other_results --data cases.csv --split test",
        "medseg-diff evaluate --predictions nnunet_masks --config mask_logits --data cases.csv -o judged",
    ),
    "report": (
        "medseg-diff report results --data cases.csv",
        "medseg-diff report results/PATIENT -i PATIENT_FOLDER",
        "medseg-diff report runs",
    ),
    "ui": (
        "medseg-diff ui",
        "medseg-diff ui --runs other_runs --port 5001",
    ),
    "selftest": (
        "medseg-diff selftest",
        "medseg-diff selftest --json",
    ),
    "info": (
        "medseg-diff info",
        "medseg-diff info --json",
    ),
    "runs": (
        "medseg-diff runs list",
        "medseg-diff runs compare first second",
    ),
    "runs list": (
        "medseg-diff runs list",
        "medseg-diff runs list --task segment --json",
    ),
    "runs best": (
        "medseg-diff runs best --task segment",
        "medseg-diff runs best --task segment --metric test_dice",
    ),
    "runs compare": (
        "medseg-diff runs compare first second",
        "medseg-diff runs compare first second --predictions results_first results_second",
    ),
    "runs sync": (
        "medseg-diff runs sync",
        "medseg-diff runs sync first",
    ),
    "runs register": (
        "medseg-diff runs register first --name glioma",
        "medseg-diff runs register first --name glioma --alias champion",
    ),
}
