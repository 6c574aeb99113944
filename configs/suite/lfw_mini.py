# Faces alone: 234 iterations of 32 images, Conv2d and DRConv, three seeds.
_base_ = "mini.py"

title = "DRConv against Conv2d on a part of Labeled Faces in the Wild"
tasks = dict(_delete_=True, face={{_base_.tasks.face}})
convs = {"_delete_": True, "Conv2d": None, "DRConv": dict(type="drconv_mm.DRConv")}
