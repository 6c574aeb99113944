"""How a process of long CPU work keeps its memory."""

# For its environment: what is freed stays with the process, else glibc would give large tensors back to the system and
# fetch them anew, page by page, at every step.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
