// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/csv.hpp>

#include "digit_groups.hpp"

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <sstream>
#include <string>

namespace mo = moiety;

namespace {

std::string refusal(std::string_view text) {
  try {
    mo::parse_csv(text);
  } catch (mo::schedule_error const& e) {
    return e.what();
  }
  return {};
}

}  // namespace

TEST_CASE_TEMPLATE("what is written is read again, for every order", Order, mo::gpipe, mo::gpipe_lifo, mo::one_f_one_b,
                   mo::interleaved_1f1b, mo::interleaved_1f1b_overlapped, mo::looped_bfs, mo::zb_h1, mo::zb_h2,
                   mo::interleaved_zb1p, mo::zb_v, mo::dual_pipe, mo::dual_pipe_v) {
  int read = 0;
  for (int p = 1; p <= 5; ++p)
    for (int v = 1; v <= 3; ++v)
      for (int const m : {1, 2, 3, 4, 8, 11, 12}) {
        mo::pipeline_shape const shape{.ranks = p, .chunks = v, .microbatches = m};
        if (mo::fault_of<Order>(shape) != mo::shape_fault::none) continue;
        auto const made = mo::make_schedule(Order{}, shape);
        auto const again = mo::parse_csv(mo::to_csv(made), "again");
        mo::schedule_view const a = made, b = again;
        CAPTURE(mo::to_csv(made));
        CHECK(mo::same_actions(a, b));
        CHECK(a.stages() == b.stages());
        CHECK(a.shape() == b.shape());
        CHECK(b.name() == "again");
        CHECK(mo::verify(again));
        for (int s = 0; s < a.stages(); ++s)
          for (int i = 0; i < m; ++i) CHECK(a.rank_of(s, i) == b.rank_of(s, i));
        ++read;
      }
  CHECK(read >= 3);
}

TEST_CASE("empty cells, blanks, CR LF and a last newline do not count") {
  auto const plan = mo::parse_csv("0F0, 0F1 ,,,0B0,0B1\r\n,1F0,1B0,1F1,\t1B1,\r\n");
  CHECK(mo::to_csv(plan) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1");
  CHECK(mo::verify(plan));
  std::istringstream in("0F0,( 0F1 ; 0B0 )OVERLAP_F_B,0B1");
  CHECK(mo::to_csv(mo::read_csv(in)) == "0F0,(0F1;0B0)OVERLAP_F_B,0B1");
}

TEST_CASE("stages may live anywhere, each on one rank") {
  auto const plan = mo::parse_csv("1F0,1B0\n0F0,0B0\n2F0,2B0");
  CHECK(mo::schedule_view(plan).rank_of(0, 0) == 1);
  CHECK(mo::verify(plan));
  auto const uneven = mo::parse_csv("0F0,1F0,1B0,0B0\n2F0,2B0");
  CHECK(mo::schedule_view(uneven).shape().chunks == 2);
  CHECK(mo::verify(uneven));
}

TEST_CASE("rank 1 of 4 of DualPipeV with 10 micro-batches, as torch.distributed.pipelining lists it") {
  auto const plan = mo::make_schedule(mo::dual_pipe_v{}, {.ranks = 4, .chunks = 2, .microbatches = 10});
  std::string const all = mo::to_csv(plan);
  CHECK(all.starts_with("0F0,0F1,0F2,0F3,0F4,0F5,0F6,7F0,7I0,7W0,7F1,7I1,7W1,7F2,7I2,7W2,7F3,(0F7;7B3)OVERLAP_F_B,"));
}

TEST_CASE("an unsound table is read, and verify says what is wrong") {
  auto const plan = mo::parse_csv("0F0,0F1,0B0\n1F0,1B0,1F1,1B1");
  mo::verdict const v = mo::verify(plan);
  CHECK(v.what == mo::flaw::missing);
  CHECK(v.where == mo::action{0, 1, mo::computation::backward});
}

TEST_CASE("what is no table of computations is refused, with row, cell and text") {
  constexpr char const* expected = "is no action: expected <stage><F, B, I or W><micro-batch>.";
  CHECK(refusal("") == "the table of a schedule is empty.");
  CHECK(refusal(" \n") == "the table of a schedule is empty.");
  CHECK(refusal(",,\n,") == "row 1 has no action.");
  CHECK(refusal("0F0,0B0\n\n1F0,1B0") == "row 2 has no action.");
  CHECK(refusal("0F0,0B0\n1F0,1B0\n\n") == "row 3 has no action.");
  CHECK(refusal("0F0,0X0") == std::string("row 1, cell 2: '0X0' ") + expected);
  CHECK(refusal("0F0\n,F0") == std::string("row 2, cell 2: 'F0' ") + expected);
  CHECK(refusal("0F0,-1F0") == std::string("row 1, cell 2: '-1F0' ") + expected);
  CHECK(refusal("0F") == std::string("row 1, cell 1: '0F' ") + expected);
  CHECK(refusal("0") == std::string("row 1, cell 1: '0' ") + expected);
  CHECK(refusal("0F0x") == std::string("row 1, cell 1: '0F0x' ") + expected);
  CHECK(refusal("0F0 0B0") == std::string("row 1, cell 1: '0F0 0B0' ") + expected);
  CHECK(refusal("0F99999999999") == "row 1, cell 1: '0F99999999999' has a number that is too large.");
  CHECK(refusal("0F0,0SEND_F0") ==
        "row 1, cell 2: '0SEND_F0' is communication: only tables of computations can be read.");
  CHECK(refusal("0UNSHARD,0F0") ==
        "row 1, cell 1: '0UNSHARD' is communication: only tables of computations can be read.");
  CHECK(refusal("(0F0;0B0)") ==
        "row 1, cell 1: '(0F0;0B0)' is no joined step: expected (<action>;<action>)OVERLAP_F_B.");
  CHECK(refusal("(0F0)OVERLAP_F_B") == "row 1, cell 1: '(0F0)OVERLAP_F_B' must join two actions.");
  CHECK(refusal("(0F0;0F1;0B0)OVERLAP_F_B") == "row 1, cell 1: '(0F0;0F1;0B0)OVERLAP_F_B' must join two actions.");
  CHECK(refusal("(") == "row 1, cell 1: '(' is no joined step: expected (<action>;<action>)OVERLAP_F_B.");
  CHECK(refusal(std::string(60, 'x')) == "row 1, cell 1: '" + std::string(40, 'x') + "…' " + expected);
}

TEST_CASE("numbers that the table does not fill are refused before they cost memory") {
  CHECK(refusal("999999999F0") == "the table names 1000000000 stages and 1 micro-batches, but has only 1 actions.");
  CHECK(refusal("0F2147483647") == "the table names 1 stages and 2147483648 micro-batches, but has only 1 actions.");
  CHECK(refusal("2147483647F2147483647,0F0").starts_with("the table names 2147483648 stages and 2147483648"));
  CHECK(refusal("0F0,0B0,2F0,2B0") == "no rank has an action of stage 1.");
  CHECK(refusal("0F0,0B0\n0F1,0B1\n1F0,1B0,1F1,1B1") == "stage 0 is on rank 0 and, for micro-batch 1, on another one.");
}

TEST_CASE("what is written is read again in a locale that groups digits") {
  auto const made = mo::make_schedule(mo::gpipe{}, {.ranks = 2, .microbatches = 1001});
  std::string const plain = mo::to_csv(made);
  digit_groups const locale;
  CHECK((mo::to_csv(made) == plain));
  CHECK(mo::same_actions(mo::parse_csv(mo::to_csv(made)), made));
}
