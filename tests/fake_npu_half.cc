// float16 kernels for the fake npu, so that mixed precision runs there: Paddle's CPU has hardly any
// to fall back to. Each one is the CPU's float32 kernel between a conversion of the float16 inputs
// and one of the outputs, which rounds as a device does that adds up in float32. What comes in or
// goes out in another type (running statistics, master weights) is passed on as it is.
// Compiled with fake_npu.cc into one plugin, with -DPADDLE_WITH_CUSTOM_DEVICE, against Paddle's
// libraries.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "paddle/phi/backends/all_context.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/core/custom_kernel.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/arg_min_max_kernel.h"
#include "paddle/phi/kernels/batch_norm_grad_kernel.h"
#include "paddle/phi/kernels/batch_norm_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/momentum_kernel.h"
#include "paddle/phi/kernels/reduce_mean_grad_kernel.h"
#include "paddle/phi/kernels/reduce_mean_kernel.h"

namespace {

using phi::DataType;
using phi::DenseTensor;
using Half = phi::dtype::float16;
using Inputs = std::vector<const DenseTensor *>;
using Outputs = std::vector<DenseTensor *>;

template <typename From, typename To>
void Convert(const DenseTensor &from, void *to) {
  const From *values = static_cast<const From *>(from.data());
  for (int64_t i = 0; i < from.numel(); ++i) static_cast<To *>(to)[i] = static_cast<To>(values[i]);
}

// The host's copies of a call's tensors, float32 where they are float16.
class Call {
 public:
  explicit Call(const phi::DeviceContext &npu)
      : npu_(npu),
        cpu_(static_cast<const phi::CPUContext &>(
            *phi::DeviceContextPool::Instance().Get(phi::CPUPlace()))) {}

  const phi::CPUContext &cpu() const { return cpu_; }

  DenseTensor Host(const DenseTensor &tensor) const {
    const bool half = tensor.dtype() == DataType::FLOAT16;
    DenseTensor host;
    host.Resize(tensor.dims());
    host.set_type(half ? DataType::FLOAT32 : tensor.dtype());
    if (!tensor.initialized()) return host;
    void *data = cpu_.Alloc(&host, host.dtype());
    if (half) Convert<Half, float>(tensor, data);
    else std::memcpy(data, tensor.data(), tensor.numel() * phi::SizeOf(tensor.dtype()));
    return host;
  }

  // Whatever isn't a tensor stays.
  template <typename T>
  const T &operator()(const T &attribute) { return attribute; }

  // The gradient of loss * scale comes without the loss, which it doesn't need but reads.
  const DenseTensor &operator()(const DenseTensor &input) {
    DenseTensor &host = Keep(Host(input));
    if (!host.initialized()) {
      void *data = cpu_.Alloc(&host, host.dtype());
      std::memset(data, 0, host.numel() * phi::SizeOf(host.dtype()));
    }
    return host;
  }

  paddle::optional<DenseTensor> operator()(const paddle::optional<DenseTensor> &input) {
    return input ? paddle::make_optional<DenseTensor>(Host(*input)) : paddle::none;
  }

  Inputs operator()(const Inputs &inputs) {
    Inputs hosts;
    for (const DenseTensor *input : inputs) hosts.push_back(&Keep(Host(*input)));
    return hosts;
  }

  // An output can be an input, too, and then has a value.
  DenseTensor *operator()(DenseTensor *output) {
    if (!output) return nullptr;
    results_.emplace_back(output, &Keep(Host(*output)));
    return results_.back().second;
  }

  Outputs operator()(const Outputs &outputs) {
    Outputs hosts;
    for (DenseTensor *output : outputs) hosts.push_back((*this)(output));
    return hosts;
  }

  // To the device with what the kernel has computed.
  void Finish() const {
    for (const auto &[output, host] : results_) {
      if (!host->initialized()) continue;
      const bool half = output->dtype() == DataType::FLOAT16;
      output->Resize(host->dims());
      void *data = npu_.Alloc(output, half ? DataType::FLOAT16 : host->dtype());
      if (half) Convert<float, Half>(*host, data);
      else std::memcpy(data, host->data(), host->numel() * phi::SizeOf(host->dtype()));
    }
  }

 private:
  DenseTensor &Keep(DenseTensor tensor) { return kept_.emplace_back(std::move(tensor)); }

  const phi::DeviceContext &npu_;
  const phi::CPUContext &cpu_;
  std::deque<DenseTensor> kept_;
  std::vector<std::pair<DenseTensor *, DenseTensor *>> results_;
};

// As backends/npu/kernels/momentum_kernel.cc of PaddleCustomDevice has it (from November 2022 to
// commit 0b39487 at least): it takes the master weights, and updates the 16-bit ones alone. With
// FAKE_NPU_MASTERS, as a GPU's: the masters come in place of the weights, and go out as both.
void Momentum(const phi::CPUContext &cpu, const DenseTensor &param, const DenseTensor &grad,
              const DenseTensor &velocity, const DenseTensor &learning_rate,
              const paddle::optional<DenseTensor> &master_param, float mu, bool use_nesterov,
              const std::string &regularization_method, float regularization_coeff, bool,
              float rescale_grad, DenseTensor *param_out, DenseTensor *velocity_out,
              DenseTensor *master_param_out) {
  const bool masters = master_param && std::getenv("FAKE_NPU_MASTERS");
  phi::MomentumDenseKernel<float>(cpu, masters ? *master_param : param, grad, velocity,
                                  learning_rate, paddle::none, mu, use_nesterov,
                                  regularization_method, regularization_coeff, false, rescale_grad,
                                  param_out, velocity_out, nullptr);
  if (masters) *master_param_out = *param_out;
}

template <auto cpu_kernel>
struct OnHost;

template <typename... Args, void (*cpu_kernel)(const phi::CPUContext &, Args...)>
struct OnHost<cpu_kernel> {
  static void Run(const phi::CustomContext &npu, Args... args) {
    Call call(npu);
    std::tuple<decltype(call(args))...> hosts{call(args)...};  // braces: from left to right
    std::apply([&](auto &&...host) { cpu_kernel(call.cpu(), host...); }, hosts);
    call.Finish();
  }
};

template <auto cpu_kernel>
phi::KernelRegistrar Register(const char *name, DataType type = DataType::FLOAT16) {
  constexpr auto kRun = &OnHost<cpu_kernel>::Run;
  using Function = std::remove_const_t<decltype(kRun)>;
  using Kernel = phi::KernelImpl<Function, kRun>;
  return {phi::RegType::OUTER,
          name,
          "npu",
          phi::DataLayout::ALL_LAYOUT,
          type,
          phi::KernelArgsParseFunctor<Function>::Parse,
          [](const phi::KernelKey &, phi::Kernel *) {},
          Kernel::Compute,
          reinterpret_cast<void *>(&Kernel::VariadicCompute)};
}

#define CPU(name) &phi::name<float, phi::CPUContext>

const phi::KernelRegistrar kKernels[] = {
    Register<CPU(ConvKernel)>("conv2d"),
    Register<CPU(ConvGradKernel)>("conv2d_grad"),
    Register<CPU(BatchNormKernel)>("batch_norm"),
    Register<CPU(BatchNormGradKernel)>("batch_norm_grad"),
    Register<CPU(BatchNormInferKernel)>("batch_norm_infer"),
    Register<CPU(ReluKernel)>("relu"),
    Register<CPU(ReluGradKernel)>("relu_grad"),
    Register<CPU(AddKernel)>("add"),
    Register<CPU(AddKernel)>("add", DataType::FLOAT32),  // float32 + float16: Paddle won't cast
    Register<CPU(AddGradKernel)>("add_grad"),
    Register<CPU(MeanKernel)>("mean"),
    Register<CPU(ReduceMeanGradKernel)>("mean_grad"),
    Register<CPU(MatmulKernel)>("matmul"),
    Register<CPU(MatmulGradKernel)>("matmul_grad"),
    Register<CPU(ArgMaxKernel)>("argmax"),
    Register<CPU(CheckFiniteAndUnscaleKernel)>("check_finite_and_unscale"),
    Register<&Momentum>("momentum"),
    Register<CPU(MultiplyGradKernel)>("multiply_grad", DataType::FLOAT32),
};

}  // namespace
