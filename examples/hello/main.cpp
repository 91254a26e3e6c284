#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>
#include <torch/nn/modules/container/sequential.h>
#include <iostream>

int main() {
  attend::ConvStack before(attend::ConvStackOptions(1, 64, 64).depth(2).activation_after_last(true));
  attend::SelfAttention1d attention(attend::SelfAttention1dOptions(64, 64, 64));
  attend::ConvStack after(attend::ConvStackOptions(64, 64, 1).depth(2));
  torch::nn::Sequential model(before, attention, after);
  attend::ShapeDataset train_set(attend::ShapeDatasetOptions().max_samples(2000).seed(1));
  attend::ShapeDataset held_out(attend::ShapeDatasetOptions().max_samples(500).seed(2));
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(3));
  attend::History history = trainer.fit(train_set, held_out, attend::ProgressBar());
  std::cout << "held-out loss: " << history.validation_loss().back() << '\n';
}
