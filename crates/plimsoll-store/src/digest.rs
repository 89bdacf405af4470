//! Short names for what has a long one.

/// 32 hexadecimal digits: FNV-1a of 64 bits, twice, with a salt behind. For names, not for secrets.
/// <http://www.isthe.com/chongo/tech/comp/fnv/>
pub(crate) fn digest(bytes: impl Iterator<Item = u8> + Clone) -> String {
    let fnv = |salt: u8| {
        let all = bytes.clone().chain([salt]);
        all.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    format!("{:016x}{:016x}", fnv(0), fnv(1))
}
