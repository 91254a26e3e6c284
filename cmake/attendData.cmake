# SPDX-License-Identifier: MIT
#
# Where the examples find their data, below the cache folder of attendCache.cmake. provisionData.cmake downloads it.

set(attend_DATA_digits "${attend_CACHE}/digits-1.9.1") # digits.csv: 64 pixels from 0 to 16, and the digit, in each line
set(attend_DATA_all-minilm-l6-v2 "${attend_CACHE}/all-minilm-l6-v2-0.1.0") # with these files:
set(attend_MODEL_FILES config.json model.safetensors vocab.txt)
