"""Types of the compiled extension."""

import numpy as np
import numpy.typing as npt

def instruction_sets() -> list[str]: ...
def topk_dot(
    queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int, isa: str, threads: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...
