//! Giving back what a start-up needed, or a large piece of work, and running does not.

/// Gives back what this process holds without need: free memory of the heap, and the pages of the program itself, most
/// of which only its start-up has read. They stay in the page cache, and those that are needed are mapped again one by
/// one. A debugger's breakpoints go with them.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, locks what it walks, and frees nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    for (start, length) in read_only_segments() {
        // SAFETY: the range lies in one read-only segment of this program: its pages are equal to those of the file, which
        // the kernel maps again at the next access. What was relocated lies in other segments.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Has what is large mapped by itself, for the rest of this process's life, so that it is given back when it is freed: a
/// conversation that is replayed, a long answer. Left alone the allocator learns from the first such piece to keep the room of
/// all that follow.
pub fn keep_nothing_large() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and is called before there is another thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// What is large, bytes: from where the allocator begins with it by itself.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Whole pages of this program's segments that nobody ever writes to: address and length, bytes.
fn read_only_segments() -> Vec<(usize, usize)> {
    // SAFETY: getauxval takes a number.
    let (table, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let table = table as *const libc::Elf64_Phdr;
    if table.is_null() {
        return Vec::new();
    }
    // SAFETY: the kernel says where the program headers are mapped and how many there are; they stay.
    let headers = unsafe { std::slice::from_raw_parts(table, count as usize) };
    let page = rustix::param::page_size();
    // A program that may lie anywhere tells by its own header where it lies.
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let Some(base) = own.and_then(|own| (table as usize).checked_sub(own.p_vaddr as usize)) else { return Vec::new() };
    let fixed = headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    fixed
        .filter_map(|header| {
            let begin = base + header.p_vaddr as usize;
            let start = begin.next_multiple_of(page);
            let end = (begin + header.p_memsz as usize) / page * page;
            (end > start).then(|| (start, end - start))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::{page_size, parse_statm, read_file};

    static READ: [u8; 1 << 20] = [7; 1 << 20];

    fn file_pages() -> u64 {
        parse_statm(&read_file("/proc/self/statm").unwrap()).unwrap().shared
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_large_is_given_back_when_it_is_freed() {
        keep_nothing_large();
        let held = || {
            let pages = parse_statm(&read_file("/proc/self/statm").unwrap()).unwrap();
            (pages.resident - pages.shared) * page_size()
        };
        let before = held();
        for _ in 0..3 {
            let large = std::hint::black_box(vec![1u8; 24 << 20]);
            // What is taken later lies above it, and would keep it from being given back at the end of the heap.
            std::mem::forget(std::hint::black_box(vec![1u8; 64 << 10]));
            drop(large);
        }
        let more = held().saturating_sub(before);
        assert!(more < 12 << 20, "{more} bytes more");
    }

    #[test]
    fn what_is_needed_comes_back() {
        let text = "written before".repeat(3);
        let sum = || std::hint::black_box(&READ).iter().map(|&byte| u64::from(byte)).sum::<u64>();
        assert_eq!(sum(), 7 << 20);
        let before = file_pages();
        give_back();
        let after = file_pages();
        assert!(after + (1 << 20) / page_size() / 2 < before, "{before} pages, then {after}");
        assert_eq!(sum(), 7 << 20);
        assert_eq!(text, "written beforewritten beforewritten before");
    }

    #[test]
    fn nothing_that_is_written_to() {
        static mut WRITTEN: u64 = 1;
        let written = &raw const WRITTEN as usize;
        let here = what_is_needed_comes_back as fn() as usize;
        let within =
            |address: usize| read_only_segments().iter().any(|&(start, len)| (start..start + len).contains(&address));
        assert!(within(here) && within(READ.as_ptr() as usize) && !within(written));
    }
}
