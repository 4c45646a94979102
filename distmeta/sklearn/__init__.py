"""Trained learners as estimators of scikit-learn: ``from distmeta.sklearn import InContextClassifier``.

``fit`` learns a task from its few examples, in one call of the learner; nothing is trained. Only this package imports
scikit-learn (``pip install 'distmeta[sklearn]'``).
"""

try:
    from sklearn.utils.validation import validate_data  # noqa: F401 (there since 1.6)
except ImportError as error:
    raise ImportError(
        f"scikit-learn is not installed, or is too old ({error}); expected 1.6 or later. Use pip install "
        "'distmeta[sklearn]'."
    ) from None

from distmeta.sklearn.few_shot import FewShotClassifier
from distmeta.sklearn.in_context import InContextClassifier, InContextRegressor

__all__ = ["FewShotClassifier", "InContextClassifier", "InContextRegressor"]
