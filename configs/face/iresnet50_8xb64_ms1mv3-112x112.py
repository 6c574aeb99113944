_base_ = ["../_base_/models/iresnet50_arcface.py", "../_base_/ms1mv3_8xb64_112x112.py"]
