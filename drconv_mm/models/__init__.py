"""Networks. Needs mmengine and mmcv."""
