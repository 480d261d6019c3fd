// The compiled module tinylm.tokenizer._kernels. What each class does is said in tinylm/tokenizer/kernels/, the only
// Python code that imports it.
#include "bindings.hpp"

NB_MODULE(_kernels, module) {
    module.doc() = "Compiled kernels; use tinylm.tokenizer.kernels.";
    tinylm::bind_byte_bpe(module);
    tinylm::bind_rank_files(module);
    tinylm::bind_scan(module);
    tinylm::bind_training(module);
    tinylm::bind_unigram(module);
    tinylm::bind_sentencepiece(module);
    tinylm::bind_wordpiece(module);
}
