"""Mixture of experts: the router, the experts' products on grouped rows, and the sum over a token's experts."""

from octavo_torch.kernels.mixture_of_experts.layer import KERNEL, TUNABLE, cost, mixture_of_experts, takes

__all__ = ["KERNEL", "TUNABLE", "cost", "mixture_of_experts", "takes"]
