/* Into how many parts a piece of work is cut, one for each thread that gets any of it. */

#pragma once

/* Multiplications that are worth a thread's while: some 0.1 to 0.3 ms of them, beside a wake-up of 5 to 50 us. Waiting
 * threads spin, too, and where the cores have other work that costs more than a second thread saves. */
#ifndef WORTH
#define WORTH 4000000.0
#endif

static long regions[2]; /* run by one thread, and by several, since the library was loaded; for tests and figures */

/* Parts for `work` multiplications among `threads` at most; 1 stays in the calling thread.
 *
 * A region that is run by several is entered by all threads, also by those without a part: GNU's OpenMP ends and
 * starts threads where teams of different sizes follow each other, and that takes longer than to wait. */
static int parts_of(double work, int threads) {
    const double worth = work / WORTH;
    const int parts = worth >= threads ? threads : worth < 2.0 ? 1 : (int)worth;
    regions[parts > 1]++;
    return parts;
}

/* How many regions one thread ran (which = 0), or several (1). */
__attribute__((visibility("default"))) long rs_regions(long which) { return regions[which != 0]; }
