// SPDX-License-Identifier: Apache-2.0
// Our layers beside the blocks of Hugging Face transformers: weights are read where and as the model has them.
#include "golden/golden_file.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <ratio>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

golden::file open(std::string const& model) {
  return golden::file(std::filesystem::path(__FILE__).parent_path() / "transformers" / (model + ".safetensors"));
}

using names = std::map<std::string, std::string>;  // ours → the model's

/// The largest difference, of the largest magnitude that was expected.
double error(std::span<double const> got, std::vector<double> const& expected) {
  REQUIRE(got.size() <= expected.size());
  double largest = 0, difference = 0;
  for (std::size_t i = got.size(); i < expected.size(); ++i) REQUIRE(expected[i] == 0);  // rows that nobody reads
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    difference = std::max(difference, std::abs(got[i] - expected[i]));
    if (std::isnan(got[i])) return got[i];
  }
  return largest > 0 ? difference / largest : difference;
}

/// A layer of a spec on the weights of a file, in double, forward and backward.
template <class Spec> class replay {
  struct in_double : mo::deployment<> {
    using element = double;
  };
  using layer_type = mo::moe_layer<Spec, in_double>;
  using spec = mo::spec_of<Spec>;

 public:
  replay(std::string const& model, names const& of, mo::layer_options<Spec> const& options = {})
      : file_(open(model)),
        names_(of),
        layer_(ctx_, options),
        weights_(layer_.bind_weights([&](mo::parameter const& p) { return memory_of(p); })),
        gradients_(layer_.make_gradients()) {
    std::vector<std::int32_t> ids;
    if (file_.arrays().contains("ids"))
      for (std::int64_t const id : file_.integers("ids")) ids.push_back(static_cast<std::int32_t>(id));
    std::vector<double> x = file_.reals("x"), dy = file_.reals("dy");
    y_.assign(x.size(), std::nan(""));
    dx_ = y_;
    auto const tokens = static_cast<std::int64_t>(x.size()) / spec::hidden;
    auto const matrix = [&](std::vector<double>& m) { return mo::matrix_view<double>{m.data(), tokens, spec::hidden}; };
    auto tape = layer_.forward(weights_, matrix(x), matrix(y_), {.ids = ids});
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::pair<std::int64_t, double>> chosen;
      for (std::int64_t j = 0; j < spec::slots; ++j)
        chosen.emplace_back(tape.routing().expert(t, j), tape.routing().weight(t, j));
      std::sort(chosen.begin(), chosen.end());
      for (auto const& [e, w] : chosen) experts_.push_back(e), router_weights_.push_back(w);
    }
    logits_.assign(tape.logits().data(), tape.logits().data() + tokens * spec::experts);
    layer_.backward(weights_, tape, matrix(dy), matrix(dx_), gradients_);
    mo::for_each_parameter(weights_, gradients_, [&](mo::parameter const& p, auto, std::span<double const> values) {
      sums_[p.name] = {values.begin(), values.end()};
    });
  }

  golden::file const& file() const { return file_; }

  /// Logits, routing, y, dx and every gradient agree with those named prefix + NAME, or with the block's own where there are
  /// none.
  void agrees(std::string const& prefix = "float64.") const {
    double const own = file_.number("tolerance");
    auto const check = [&](std::string const& name, std::span<double const> got) {
      CAPTURE(name);
      bool const lifted = file_.arrays().contains(prefix + name);
      CHECK(error(got, file_.reals(lifted ? prefix + name : name)) <= (lifted ? 1e-10 : own));
    };
    check("router_logits", logits_);
    check_routing(prefix);
    check("y", y_);
    check("dx", dx_);
    for (auto const& [name, values] : sums_) check("grad." + names_.at(name), values);
  }

  /// y, logits and dx alone.
  double error_of_y(std::string const& name) const { return error(y_, file_.reals(name)); }
  double error_of_logits(std::string const& name) const { return error(logits_, file_.reals(name)); }
  double error_of_dx(std::string const& name) const { return error(dx_, file_.reals(name)); }

 private:
  void* memory_of(mo::parameter const& p) {
    std::string const name = "weight." + names_.at(p.name);
    CAPTURE(name);
    std::vector<double> const& given = file_.reals(name);
    check_shape(p, file_.shape(name));
    if (p.type == "float") return (floats_[name] = {given.begin(), given.end()}).data();
    return (doubles_[name] = given).data();
  }

  void check_shape(mo::parameter const& p, std::vector<std::size_t> const& models) const {
    std::vector<std::size_t> ours(p.shape.begin(), p.shape.end());
    if (models.size() == 2 && ours.size() == 3) ours = {ours[0] * ours[1], ours[2]};  // DBRX: one expert below another
    // LongCat has rows of experts that compute nothing, and nobody reads them
    if (p.of_experts && models[0] != ours[0]) ours[0] += static_cast<std::size_t>(spec::zero_experts);
    REQUIRE(ours == models);
  }

  void check_routing(std::string const& prefix) const {
    bool const other = file_.arrays().contains(prefix + "top_k_index");
    auto const& ids = file_.integers(other ? prefix + "top_k_index" : "top_k_index");
    bool const lifted = file_.arrays().contains(prefix + "top_k_weights");
    auto const& weights = file_.reals(lifted ? prefix + "top_k_weights" : "top_k_weights");
    auto const k = static_cast<std::size_t>(spec::slots);
    std::vector<double> sorted;
    std::vector<std::int64_t> experts;
    for (std::size_t t = 0; t * k < ids.size(); ++t) {
      std::vector<std::pair<std::int64_t, double>> chosen;
      for (std::size_t j = t * k; j < (t + 1) * k; ++j) chosen.emplace_back(ids[j], weights[j]);
      std::sort(chosen.begin(), chosen.end());
      for (auto const& [e, w] : chosen) experts.push_back(e), sorted.push_back(w);
    }
    CHECK(experts == experts_);
    CHECK(error(router_weights_, sorted) <= (lifted ? 1e-10 : file_.number("tolerance")));
  }

  golden::file file_;
  names names_;
  std::map<std::string, std::vector<double>> doubles_;
  std::map<std::string, std::vector<float>> floats_;
  mo::context<in_double> ctx_;
  layer_type layer_;
  typename layer_type::weights_type weights_;
  typename layer_type::gradients_type gradients_;
  std::vector<double> y_, dx_, logits_, router_weights_;
  std::vector<std::int64_t> experts_;
  std::map<std::string, std::vector<double>> sums_;
};

names const joined{{"router.weight", "gate.weight"},
                   {"experts.gate_up", "experts.gate_up_proj"},
                   {"experts.down", "experts.down_proj"}};

/// The same with the router under another name.
names with_router(std::string const& name) {
  names of = joined;
  of["router.weight"] = name;
  return of;
}

using swiglu = mo::gated_mlp<mo::silu, mo::concatenated>;

template <int Experts, int Slots, class Weights, int Ffn = 12>
struct softmax_block : mo::layer_spec<mo::dims{.hidden = 24, .ffn = Ffn, .experts = Experts}> {
  using router = mo::router<mo::softmax, mo::top_k<Slots>, Weights>;
  using experts = swiglu;
};

struct phi : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::sparsemixer<std::ratio<1, 10>>>;
  using experts = swiglu;
};

struct gpt_oss : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::linear_bias, mo::softmax, mo::top_k<3>, mo::softmax_of_selected>;
  using experts = mo::gated_mlp<mo::gelu_quick, mo::clamped<std::ratio<7>>, mo::up_offset<>, mo::biased,
                                mo::interleaved, mo::in_by_out>;
};

/// Adds a shared expert under the model's name for it.
names with_shared(names of, std::string const& prefix) {
  for (std::string const tensor : {"gate", "up", "down"})
    of["shared." + tensor] = prefix + "." + tensor + "_proj.weight";
  of["shared_gate.weight"] = prefix + "_gate.weight";
  of["router.selection_bias"] = "gate.e_score_correction_bias";
  return of;
}

using plain = mo::gated_mlp<mo::silu>;

struct qwen2 : mo::layer_spec<mo::dims{.hidden = 26, .ffn = 12, .experts = 7}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using experts = swiglu;
  using shared = mo::shared_experts<1, plain, mo::shared_ffn<20>, mo::sigmoid_gated>;
};

struct qwen3_next : mo::layer_spec<mo::dims{.hidden = 25, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<3>, mo::renormalised>;
  using experts = swiglu;
  using shared = mo::shared_experts<1, plain, mo::sigmoid_gated>;
};

template <int Experts, class... Roles>
struct deepseek : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = Experts}> {
  using router = mo::router<Roles...>;
  using experts = swiglu;
  using shared = mo::shared_experts<1, plain>;
};

template <int Experts, class... Roles> struct deepseek_v2 : deepseek<Experts, Roles...> {
  using shared = mo::shared_experts<2, plain>;
};

using deepseek_v3 = deepseek<8, mo::sigmoid, mo::selection_bias, mo::groups<4, 3>, mo::top_k<4>, mo::renormalised,
                             mo::scale<std::ratio<5, 2>>>;

template <class... Roles>
struct deepseek_v4 : deepseek<7, mo::sqrt_softplus, mo::renormalised, mo::scale<std::ratio<3, 2>>, Roles...> {
  using experts = mo::limited_swiglu<std::ratio<10>, mo::concatenated>;
  using shared = mo::shared_experts<1, mo::limited_swiglu<std::ratio<10>>>;
};

template <int Slots> struct llama4 : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = 7}> {
  using router = mo::router<mo::sigmoid, mo::top_k<Slots>, mo::on_input>;
  using experts = mo::gated_mlp<mo::silu, mo::concatenated, mo::in_by_out>;
  using shared = mo::shared_experts<1, plain>;
};

struct longcat : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = 6, .zero_experts = 3}> {
  using router = mo::router<mo::softmax, mo::selection_bias, mo::top_k<3>, mo::scale<std::ratio<6>>>;
  using experts = swiglu;
};

struct dbrx : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 12, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::silu, mo::down_in_by_out>;
};

}  // namespace

TEST_CASE("Mixtral, Qwen3, OLMoE and Granite agree") {
  replay<softmax_block<8, 2, mo::renormalised>>("mixtral", joined).agrees();
  replay<softmax_block<10, 3, mo::as_scored>>("olmoe", joined).agrees();
  replay<softmax_block<9, 3, mo::renormalised, 13>>("qwen3_moe", joined).agrees();
  replay<softmax_block<10, 4, mo::softmax_of_selected>>("granitemoe", with_router("router.weight")).agrees();
}

TEST_CASE("gpt-oss agrees: biases everywhere, clamps, interleaved columns") {
  names of = with_router("router.weight");
  of["router.bias"] = "router.bias";
  of["experts.gate_up_bias"] = "experts.gate_up_proj_bias";
  of["experts.down_bias"] = "experts.down_proj_bias";
  replay<gpt_oss>("gpt_oss", of).agrees();
}

TEST_CASE("Phi-3.5-MoE agrees, as it evaluates") { replay<phi>("phimoe", with_router("router.weight")).agrees(); }

TEST_CASE("DBRX agrees: down lies the other way round") {
  replay<dbrx>("dbrx", {{"router.weight", "router.layer.weight"},
                        {"experts.gate", "experts.mlp.w1"},
                        {"experts.up", "experts.mlp.v1"},
                        {"experts.down", "experts.mlp.w2"}})
      .agrees();
}

TEST_CASE("Qwen2 and Qwen3-Next agree: shared experts behind a gate") {
  replay<qwen2>("qwen2_moe", with_shared(joined, "shared_expert")).agrees();
  replay<qwen3_next>("qwen3_next", with_shared(joined, "shared_expert")).agrees();
}

TEST_CASE("DeepSeek-V2, V3 and GLM-4.5 agree: groups, biases and shared experts") {
  names const of = with_shared(joined, "shared_experts");
  replay<deepseek_v2<8, mo::softmax, mo::top_k<3>>>("deepseek_v2_lite", of).agrees();
  replay<
      deepseek_v2<9, mo::softmax, mo::groups<3, 2, mo::group_score::largest>, mo::top_k<3>, mo::scale<std::ratio<16>>>>(
      "deepseek_v2", of)
      .agrees();
  replay<deepseek_v3>("deepseek_v3", of).agrees();
  replay<deepseek<9, mo::sigmoid, mo::selection_bias, mo::top_k<3>, mo::renormalised>>("glm4_moe", of).agrees();
}

TEST_CASE("groups that are masked with 0 let others in: our layer is the one with minus infinity") {
  names const of = with_shared(joined, "shared_experts");
  replay<deepseek_v3> const negative("deepseek_v3_negative", of);
  negative.agrees();
  CHECK(negative.file().text("other_mask") == "0.0");
  CHECK(negative.error_of_y("other_mask.y") > 0.01);
  replay<deepseek_v3> const wrong("axk2", of);  // its block masks with 0
  CHECK(wrong.error_of_logits("float64.router_logits") <= 1e-10);
  CHECK(wrong.file().text("other_mask") == "-inf");
  CHECK(wrong.error_of_y("y") > 0.01);
  CHECK(wrong.error_of_y("other_mask.y") < 1e-5);
  CHECK(wrong.error_of_dx("other_mask.dx") < 1e-5);
}

TEST_CASE("DeepSeek-V4 agrees: square roots of softplus, clamps, and experts by token id") {
  names const of = with_shared(joined, "shared_experts");
  replay<deepseek_v4<mo::selection_bias, mo::top_k<3>>>("deepseek_v4", of).agrees();
  golden::file const file = open("deepseek_v4_hash");
  std::vector<std::int32_t> table;
  for (std::int64_t const e : file.integers("weight.gate.tid2eid")) table.push_back(static_cast<std::int32_t>(e));
  using by_id = deepseek_v4<mo::hash<3>>;
  replay<by_id>("deepseek_v4_hash", of, {.router = {mo::hash<3>{.table = table.data(), .entries = 23}}}).agrees();
}

TEST_CASE("Llama-4 agrees: weights on the experts' input, beside a shared expert") {
  names const of = with_shared(with_router("router.weight"), "shared_expert");
  replay<llama4<1>>("llama4", of).agrees();
  replay<llama4<2>>("llama4_top2", of).agrees();
}

TEST_CASE("LongCat-Flash agrees: experts that compute nothing") {
  names of = with_router("router.classifier.weight");
  of["router.selection_bias"] = "router.e_score_correction_bias";
  replay<longcat>("longcat_flash", of).agrees();
}
