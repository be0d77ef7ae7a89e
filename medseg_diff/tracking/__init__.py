"""What a run tells MLflow. Local files are the truth; MLflow is a mirror that may fail and be completed later."""

from medseg_diff.tracking.evaluations import attach_evaluation, record_evaluation
from medseg_diff.tracking.mirror import Mirror
from medseg_diff.tracking.store import Entry, address
from medseg_diff.tracking.sync import complete

__all__ = ["Entry", "Mirror", "address", "attach_evaluation", "complete", "record_evaluation"]
