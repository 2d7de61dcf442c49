"""Linux itself: system calls that Python lacks, io_uring, and what the page cache holds."""
