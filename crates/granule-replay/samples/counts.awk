# Counts the DMA events of a trace by phase and device, without granule:
#   zstd -dc nvme-e1000e.txt.zst | awk -f counts.awk
# Columns: device, phase, map, unmap, map_sg, unmap_sg, alloc, bytes mapped (lists included),
# bytes unmapped (single mappings only: an unmap of a list has no sizes), bytes allocated,
# list entries.
function number(text, hex, value, i) {
  sub(/^0x/, "", text)
  value = 0
  for (i = 1; i <= length(text); i++) value = value * 16 + index("123456789abcdef", substr(text, i, 1))
  return value
}
function field(name, i) {
  for (i = 1; i <= NF; i++) if (index($i, name "=") == 1) return substr($i, length(name) + 2)
  return ""
}
function device(event, i) {
  for (i = 1; i < NF; i++) if ($i == event ":") return $(i + 1)
}
function note(event, d) { d = device(event); seen[d, phase] = 1; return d SUBSEP phase }
/tracing_mark_write: == / { sub(/.*tracing_mark_write: == /, ""); phase = $0; order[++phases] = phase; next }
/ dma_map_page: /   { k = note("dma_map_page");   map[k]++;   mapped[k] += field("size") }
/ dma_unmap_page: / { k = note("dma_unmap_page"); unmap[k]++; unmapped[k] += field("size") }
/ dma_alloc: /      { k = note("dma_alloc");      alloc[k]++; allocated[k] += field("size") }
/ dma_unmap_sg: /   { k = note("dma_unmap_sg");   unsg[k]++ }
/ dma_map_sg: / {
  k = note("dma_map_sg"); sg[k]++
  text = field("sizes"); gsub(/[{}]/, "", text)
  count = split(text, sizes, ",")
  for (i = 1; i <= count; i++) mapped[k] += number(sizes[i])
  text = field("nents"); sub(/.*\//, "", text); entries[k] += text
}
END {
  for (i = 1; i <= phases; i++) for (pair in seen) {
    split(pair, part, SUBSEP)
    if (part[2] != order[i]) continue
    printf "%s|%s|%d|%d|%d|%d|%d|%d|%d|%d|%d\n", part[1], part[2], map[pair], unmap[pair], sg[pair], unsg[pair], alloc[pair], mapped[pair], unmapped[pair], allocated[pair], entries[pair] | "sort"
  }
}
