"""What guides learn: returns and properties, from noised inputs, against problems whose answer is known."""

import math

import pytest
import torch

from diffuser_core.schedule import NoiseSchedule
from diffuser_core.train.judges import discounted_returns, train_classifier, train_value
from diffuser_core.unet import LinearAttention
from diffuser_core.value_network import StepClassifier, ValueConfig, ValueNetwork

SCHEDULE = NoiseSchedule.cosine(20)


def test_returns_are_the_discounted_sums_to_the_end():
    rewards = torch.tensor([1.0, -2.0, 3.0])
    assert discounted_returns(rewards, 0.5).tolist() == pytest.approx([1 - 1 + 0.75, -2 + 1.5, 3])
    assert discounted_returns(rewards, 1.0, True, -100.0).tolist() == pytest.approx([-101, -102, -100])
    assert discounted_returns(rewards, 1.0, False, -100.0)[-1] == 3.0
    with pytest.raises(ValueError, match=r'shape \(steps,\).*got \(1, 3\)'):
        discounted_returns(rewards[None])


@pytest.mark.parametrize('head', ['flat', 'pooled'])
def test_the_return_predictor_learns_the_return_and_how_little_noise_leaves_of_it(head):
    """Trajectories x_t = u + 0.1 noise, return u, u standard normal: the best guess at level i is a Gaussian's posterior mean."""
    def sample(generator):
        u = torch.randn(256, generator=generator)
        return u[:, None, None] + 0.1 * torch.randn(256, 8, 1, generator=generator), u

    torch.manual_seed(0)
    network = ValueNetwork(1, ValueConfig(8, (1, 8), head), 8)
    train_value(network, sample, SCHEDULE, steps=600, learning_rate=3e-3)
    generator = torch.Generator().manual_seed(9)
    clean, u = sample(generator)
    with torch.no_grad():
        for i in (0, 14):
            a = SCHEDULE.alpha_bar[i].item()
            noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * torch.randn(clean.shape, generator=generator)
            variance = (a * 0.01 + 1 - a) / 8
            best = math.sqrt(a) / (a + variance) * noisy.mean((1, 2))
            assert (network(noisy, torch.tensor([i])) - best).square().mean().sqrt() < 0.25
        blind = network(torch.randn(clean.shape, generator=generator), torch.tensor([19]))
    assert blind.std() < 0.5 * u.std()  # of pure noise there is nothing to say
    assert (network(clean, torch.tensor([0])) - u).square().mean() < 0.1 < u.square().mean()


def test_the_head_decides_which_horizons_are_taken():
    flat, pooled = (ValueNetwork(2, ValueConfig(8, (1, 8), head), 16) for head in ('flat', 'pooled'))
    assert pooled(torch.zeros(3, 40, 2), torch.tensor([1])).shape == (3,)
    with pytest.raises(ValueError, match="'flat' head for a horizon of 16, got 40"):
        flat(torch.zeros(3, 40, 2), torch.tensor([1]))
    with pytest.raises(ValueError, match="value.head must be one of pooled, flat, got 'mean'"):
        ValueConfig(head='mean')
    with pytest.raises(ValueError, match='a multiple of 64, got'):
        ValueConfig(8, (1, 2))


def test_the_classifier_learns_a_property_of_single_states():
    def sample(generator):
        x = torch.randn(128, 3, generator=generator)
        return x, torch.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0], dim=1)

    torch.manual_seed(0)
    network = StepClassifier(3, 2, 32)
    train_classifier(network, sample, SCHEDULE, steps=400, learning_rate=5e-3)
    states, labels = sample(torch.Generator().manual_seed(5))
    right = (network(states, torch.tensor([0])) > 0) == labels
    blurred = (network(torch.randn(128, 3), torch.tensor([19])).sigmoid() - 0.5).abs().mean()
    assert right.float().mean() > 0.9 and blurred < 0.25
    per_step = network(states.reshape(16, 8, 3), torch.tensor([0]))
    torch.testing.assert_close(per_step.reshape(128, 2), network(states, torch.tensor([0])))


def test_linear_attention_is_its_formula():
    """Against plain loops in double precision: a softmax of the keys over time, then sums."""
    torch.manual_seed(0)
    layer = LinearAttention(8).double()
    x = torch.randn(2, 8, 5, dtype=torch.float64)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    weights = layer.parts.weight[:, :, 0]
    q, k, v = torch.einsum('oc,bct->bot', weights, normed).reshape(2, 3, 4, 32, 5).unbind(1)
    k = k.exp() / k.exp().sum(-1, keepdim=True)
    context = torch.einsum('bhdn,bhen->bhde', k, v)
    attended = torch.einsum('bhde,bhdn->bhen', context, q / math.sqrt(32)).reshape(2, 128, 5)
    out = torch.einsum('oc,bct->bot', layer.out.weight[:, :, 0], attended) + layer.out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out)
