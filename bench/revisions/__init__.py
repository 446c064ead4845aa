"""`--compare REVISION`: two revisions of the kernels in turns, each in a process of its own.

Two libraries that register one namespace of ops cannot live in one process.
"""
