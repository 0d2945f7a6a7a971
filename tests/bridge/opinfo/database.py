"""Torch's database of operators and modules; importing it warns of what torch's own tests lack."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_device_type import precisionOverride, toleranceOverride
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.opinfo.core import DecorateInfo, SampleInput

__all__ = ["DecorateInfo", "SampleInput", "module_db", "op_db", "precisionOverride", "toleranceOverride"]
