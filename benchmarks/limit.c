/* The products and attention calls of a run of the decoder, back to back, with nothing between them. */

#include "kernels.c"

EXPORT void limit_run(const Layer *layers, long num_layers, const Model *m, const Batch *b, const void *head,
                      long vocab, float *logits, long wanted) {
    const long mixed = m->kv_heads * GROUP * HEAD_DIM, rows = b->rows;
    for (long i = 0; i < num_layers; i++) {
        const Layer *l = layers + i;
        rs_linear(l->qkv, m->half, 0, m->kv_heads * (GROUP + 2) * HEAD_DIM, m->width, m->normed, m->qkv, rows, 0,
                  m->threads);
        attend(m->queries, m->mixed, l->keys, l->values, b->pages, m->max_pages, b->positions, m->kv_heads, l->window,
               b->begin, b->common, b->items, m->scores, m->threads);
        rs_linear(l->projection, m->half, 0, m->width, mixed, m->mixed, m->partial, rows, 0, m->threads);
        rs_linear(l->gate_up, m->half, 0, 2 * m->mlp_width, m->width, m->normed, m->gate_up, rows, 0, m->threads);
        rs_linear(l->down, m->half, 0, m->width, m->mlp_width, m->active, m->partial, rows, 0, m->threads);
    }
    rs_linear(head, m->half, 0, vocab, m->width, m->normed, logits, wanted, 0, m->threads);
}
