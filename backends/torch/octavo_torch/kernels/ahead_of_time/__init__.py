"""Every kernel compiled for every architecture, without a device: what it takes of each, held against a budget.

`python -m octavo_torch.kernels.ahead_of_time --help` says how. The specimens of each kernel run on torch's meta tensors
(`plan`), each launch is specialised as Triton's own just-in-time compiler would (`specialise`) and compiled (`build`),
and the registers, spills and shared memory that come out (`figures`) are judged (`budget`).
"""
