"""The layout of torchvision's ResNet34 with all channel counts scaled; parameter names are torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

LAYERS = (3, 4, 6, 3)


def build_resnet(width: int, num_classes: int) -> ResNet:
    """Return a ResNet34 whose four stages have ``width`` × 1, 2, 4 and 8 channels (torchvision's own: 64)."""
    network = ResNet(BasicBlock, list(LAYERS), num_classes=num_classes)
    network.inplanes = width
    network.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    for stage, blocks in enumerate(LAYERS):
        layer = network._make_layer(BasicBlock, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
        setattr(network, f"layer{stage + 1}", layer)
    network.fc = nn.Linear(width * 8, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            # Blocks start as identities, which lets large learning rates through.
            nn.init.zeros_(module.bn2.weight)
    return network


def features(network: ResNet, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled feature (n, 8 × width), the vector of a picture, and the third stage's map."""
    stem = network.maxpool(network.relu(network.bn1(network.conv1(pictures))))
    middle = network.layer3(network.layer2(network.layer1(stem)))
    return torch.flatten(network.avgpool(network.layer4(middle)), 1), middle
