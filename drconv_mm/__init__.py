"""Dynamic Region-Aware Convolution (DRConv) for OpenMMLab."""
