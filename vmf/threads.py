"""How threads wait for one another, which must be said before PyTorch is loaded."""

import os


def wait_briefly() -> None:
    """Has OpenMP's threads spin only briefly before they sleep, unless the user says otherwise.

    Decoding workers and training threads share the cores. Threads that spin at a barrier keep the
    cores from those they wait for: on two busy cores that cost a factor of ten. OpenMP reads the
    setting when PyTorch is loaded; later this changes nothing.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "2000"
