// Binds the optimizer's update of all parameters: ldae::adamw_ema_.

#include "adamw_ema.h"

#include <cmath>

#include "binding.h"

namespace ldae {
namespace {

constexpr int64_t PIECE = 8192;  // elements of one piece of work: its tensors fit a core's cache

using List = std::vector<Tensor>;

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

void check_all(const List& list, const List& params, const char* name) {
  STD_TORCH_CHECK(list.size() == params.size(), name, " must have as many tensors as params");
  for (size_t i = 0; i < list.size(); ++i)
    STD_TORCH_CHECK(list[i].numel() == params[i].numel() && list[i].is_contiguous() &&
                        list[i].scalar_type() == list[0].scalar_type(),
                    name, " must be contiguous, of one dtype and as large as params; number ", i,
                    " is not");
}

void update(List params, List grads, List exp_avgs, List exp_avg_sqs, List emas, List copies,
            Tensor grad_scale, double step, double lr, double beta1, double beta2, double eps,
            double weight_decay, double ema_decay) {
  if (params.empty()) return;
  check_all(grads, params, "grads");
  for (auto [list, name] : {std::pair{&params, "params"}, {&exp_avgs, "exp_avgs"},
                            {&exp_avg_sqs, "exp_avg_sqs"}, {&emas, "emas"}}) {
    check_all(*list, params, name);
    STD_TORCH_CHECK((*list)[0].scalar_type() == ScalarType::Float, name, " must be float32");
  }
  if (!copies.empty()) check_all(copies, params, "copies");
  check(grad_scale, "grad_scale", ScalarType::Float, {});
  if (!std::isfinite(*at<float>(grad_scale))) return;
  const AdamW numbers{*at<float>(grad_scale),
                      float(beta2),
                      float(1 - beta2),
                      float(eps),
                      float(1 - lr * weight_decay),
                      float(lr / (1 - std::pow(beta1, step))),
                      float(1 / std::sqrt(1 - std::pow(beta2, step))),
                      Lerp(1 - beta1),
                      Lerp(1 - ema_decay)};
  std::vector<Piece> pieces;
  for (size_t i = 0; i < params.size(); ++i)
    for (int64_t begin = 0; begin < params[i].numel(); begin += PIECE)
      pieces.push_back({i, begin, std::min(begin + PIECE, params[i].numel())});
  const bool halves = !copies.empty() && copies[0].scalar_type() == ScalarType::Half;
  auto run = [&](auto grad, auto copy) {
    using G = decltype(grad);
    using C = decltype(copy);
    torch::stable::parallel_for(0, pieces.size(), 1, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        const auto [i, begin, end] = pieces[n];
        const AdamWEMA<G, C> a{at<float>(params[i]),      at<G>(grads[i]),
                               at<float>(exp_avgs[i]),    at<float>(exp_avg_sqs[i]),
                               at<float>(emas[i]),        copies.empty() ? nullptr : at<C>(copies[i])};
        adamw_ema(numbers, a, begin, end);
      }
    });
  };
  STD_TORCH_CHECK(copies.empty() || halves || copies[0].scalar_type() == ScalarType::BFloat16,
                  "copies must be bfloat16 or float16");
  by_output_dtype(grads[0].scalar_type(), [&](auto grad) {
    halves ? run(grad, half{}) : run(grad, bf16{});
  });
}

}  // namespace
}  // namespace ldae

STABLE_TORCH_LIBRARY_FRAGMENT(ldae, m) {
  m.def("adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs,"
        " Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] emas, Tensor(e!)[] copies, Tensor grad_scale,"
        " float step, float lr, float beta1, float beta2, float eps, float weight_decay,"
        " float ema_decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ldae, CPU, m) { m.impl("adamw_ema_", TORCH_BOX(&ldae::update)); }
