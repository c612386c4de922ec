"""One thread for each process: results repeat bit for bit, and parallel tests do not compete."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import torch  # noqa: E402  (reads them)

torch.backends.cudnn.allow_tf32 = False  # as in a run: fp32 on a GPU means fp32
