_base_ = ["../_base_/models/mobilefacenet_arcface.py", "../_base_/ms1mv3_8xb64_112x112.py"]
