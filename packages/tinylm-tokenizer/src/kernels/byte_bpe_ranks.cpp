// Reading tiktoken's rank files: the border to Python. The readable version is _tiktoken_format.py: read.
#include <nanobind/stl/string_view.h>

#include <array>
#include <optional>
#include <string>

#include "bindings.hpp"

namespace nb = nanobind;

namespace tinylm {
namespace {

constexpr uint8_t kNoDigit = 0xFF;

constexpr std::array<uint8_t, 256> kDigits = [] {  // base64: character → its six bits
    std::array<uint8_t, 256> digits{};
    digits.fill(kNoDigit);
    constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < alphabet.size(); i++) digits[uint8_t(alphabet[i])] = uint8_t(i);
    return digits;
}();

// Appends the bytes that `text` (padded base64) stands for; false: it is none.
bool decode_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4) return false;
    size_t padding = 0;
    while (padding < 2 && text.ends_with('=')) text.remove_suffix(1), padding++;
    uint32_t bits = 0;
    int held = 0;
    for (char character : text) {
        const uint8_t digit = kDigits[uint8_t(character)];
        if (digit == kNoDigit) return false;
        bits = bits << 6 | digit;
        if ((held += 6) >= 8) out.push_back(char(bits >> (held -= 8)));
    }
    return true;
}

// The tokens of a rank file, id → bytes; None if a line is not exactly a token, a space and a rank, or a rank is there
// twice: then the Python rung reads it and says what is wrong.
nb::object read_ranks(const nb::bytes& data) {
    std::string_view left(data.c_str(), data.size());
    nb::dict tokens;
    size_t lines = 0;
    for (std::string token; !left.empty(); lines++, token.clear()) {
        const size_t space = left.find(' '), end = std::min(left.find('\n'), left.size());
        if (space >= end || end - space < 2 || end - space > 10 || !decode_base64(left.substr(0, space), token))
            return nb::none();
        uint32_t id = 0;
        for (char digit : left.substr(space + 1, end - space - 1)) {
            if (digit < '0' || digit > '9') return nb::none();
            id = 10 * id + uint32_t(digit - '0');
        }
        tokens[nb::int_(id)] = nb::bytes(token.data(), token.size());
        left.remove_prefix(std::min(end + 1, left.size()));
    }
    return nb::len(tokens) == lines ? nb::object(tokens) : nb::none();
}

}  // namespace

void bind_rank_files(nb::module_& module) { module.def("read_ranks", &read_ranks); }

}  // namespace tinylm
