"""Names for the arrays that the packages pass to each other.

Their shapes are in the docstrings of what takes them.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Marks = NDArray[np.bool_]
Ids = NDArray[np.int64]
