// Reading tiktoken's rank files: the border to Python. The readable version is _formats/tiktoken_format.py: read.
#include <nanobind/stl/string_view.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "bindings.hpp"
#include "byte_bpe_table.hpp"

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

// The bytes that `text` (padded base64) stands for; false: it is none.
bool decode_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4) return false;
    size_t padding = 0;
    while (padding < 2 && text.ends_with('=')) text.remove_suffix(1), padding++;
    const auto digit = [&](size_t i) { return kDigits[uint8_t(i < text.size() ? text[i] : 'A')]; };
    out.resize((text.size() + padding) / 4 * 3);
    uint8_t all = 0;
    for (size_t i = 0, at = 0; i < text.size(); i += 4) {
        const uint8_t digits[4] = {digit(i), digit(i + 1), digit(i + 2), digit(i + 3)};
        all |= digits[0] | digits[1] | digits[2] | digits[3];
        const uint32_t bits = uint32_t(digits[0]) << 18 | uint32_t(digits[1]) << 12 | uint32_t(digits[2]) << 6 | digits[3];
        for (int shift = 16; shift >= 0; shift -= 8) out[at++] = char(bits >> shift);
    }
    out.resize(out.size() - padding);
    return !(all & 0x80);
}

// Whether two are the same: into a table, whose places are fetched ahead, as each is a wait for memory.
bool repeated(const std::vector<uint64_t>& hashes) {
    constexpr size_t ahead = 16;
    std::vector<uint64_t> seen(std::bit_ceil(2 * hashes.size() + 1));  // 0: free
    for (size_t i = 0; i < hashes.size(); i++) {
        if (i + ahead < hashes.size()) __builtin_prefetch(&seen[hashes[i + ahead] >> 1 & (seen.size() - 1)], 1);
        size_t at = hashes[i] >> 1 & (seen.size() - 1);
        while (seen[at] && seen[at] != hashes[i]) at = (at + 1) & (seen.size() - 1);
        if (seen[at]) return true;
        seen[at] = hashes[i];
    }
    return false;
}

// The tokens of a rank file, id → bytes. None unless each line is exactly a token, a space and a rank, no token and no
// rank is there twice, and each byte is a token: otherwise the Python rung reads the file and says what is wrong.
nb::object read_ranks(const nb::bytes& data) {
    std::string_view left(data.c_str(), data.size());
    std::vector<uint64_t> hashes;  // of the tokens, never 0; two equal ones are taken for a repetition
    nb::dict tokens;
    size_t lines = 0, single = 0;
    for (std::string token; !left.empty(); lines++, token.clear()) {
        const size_t space = left.find(' '), end = std::min(left.find('\n', std::min(space, left.size())), left.size());
        if (space >= end || end - space < 2 || end - space > 10 || !decode_base64(left.substr(0, space), token))
            return nb::none();
        uint32_t id = 0;
        for (char digit : left.substr(space + 1, end - space - 1)) {
            if (digit < '0' || digit > '9') return nb::none();
            id = 10 * id + uint32_t(digit - '0');
        }
        single += token.size() == 1;
        if (token.empty()) return nb::none();
        hashes.push_back(hash_bytes(reinterpret_cast<const uint8_t*>(token.data()), token.size()) | 1);
        const nb::object key = nb::steal(PyLong_FromUnsignedLong(id));
        const nb::object value = nb::steal(PyBytes_FromStringAndSize(token.data(), Py_ssize_t(token.size())));
        if (!key.is_valid() || !value.is_valid() || PyDict_SetItem(tokens.ptr(), key.ptr(), value.ptr()))
            throw nb::python_error();
        left.remove_prefix(std::min(end + 1, left.size()));
    }
    const bool good = nb::len(tokens) == lines && single == 256 && !repeated(hashes);
    return good ? nb::object(tokens) : nb::none();
}

}  // namespace

void bind_rank_files(nb::module_& module) { module.def("read_ranks", &read_ranks); }

}  // namespace tinylm
