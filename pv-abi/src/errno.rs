//! Error numbers, as in Xen's `public/errno.h`.

macro_rules! errnos {
    ($($(#[$doc:meta])* $Name:ident = $value:literal;)*) => {
        /// Why a hypercall was refused; a result register holds its negative.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(i32)]
        pub enum Errno { $($(#[$doc])* $Name = $value,)* }

        impl Errno {
            /// Every error number, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$Name,)*];

            /// The number's value, positive.
            pub const fn value(self) -> i32 {
                match self { $(Self::$Name => $value,)* }
            }

            /// Decodes a positive error number.
            pub const fn from_value(value: i32) -> Option<Self> {
                match value { $($value => Some(Self::$Name),)* _ => None }
            }

            /// The header's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Name => stringify!($Name),)* }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    Eperm = 1;
    /// No such entry.
    Enoent = 2;
    /// No such domain.
    Esrch = 3;
    /// Interrupted call.
    Eintr = 4;
    /// Input/output error.
    Eio = 5;
    /// No such device or address.
    Enxio = 6;
    /// Argument list too long.
    E2big = 7;
    /// Exec format error.
    Enoexec = 8;
    /// Bad file number.
    Ebadf = 9;
    /// No child.
    Echild = 10;
    /// Try again.
    Eagain = 11;
    /// Out of memory.
    Enomem = 12;
    /// Permission denied.
    Eacces = 13;
    /// Bad address.
    Efault = 14;
    /// Busy.
    Ebusy = 16;
    /// Exists.
    Eexist = 17;
    /// Cross-device link.
    Exdev = 18;
    /// No such device.
    Enodev = 19;
    /// Not a directory.
    Enotdir = 20;
    /// Is a directory.
    Eisdir = 21;
    /// Invalid argument.
    Einval = 22;
    /// Table overflow.
    Enfile = 23;
    /// Too many open.
    Emfile = 24;
    /// No space left.
    Enospc = 28;
    /// Read-only.
    Erofs = 30;
    /// Too many links.
    Emlink = 31;
    /// Argument out of domain.
    Edom = 33;
    /// Result not representable.
    Erange = 34;
    /// Deadlock would occur.
    Edeadlk = 35;
    /// Name too long.
    Enametoolong = 36;
    /// No locks.
    Enolck = 37;
    /// Not implemented.
    Enosys = 38;
    /// Not empty.
    Enotempty = 39;
    /// No data.
    Enodata = 61;
    /// Timer expired.
    Etime = 62;
    /// Bad message.
    Ebadmsg = 74;
    /// Value too large.
    Eoverflow = 75;
    /// Illegal byte sequence.
    Eilseq = 84;
    /// The call is to be made again with updated arguments.
    Erestart = 85;
    /// Message too large.
    Emsgsize = 90;
    /// Operation not supported.
    Eopnotsupp = 95;
    /// Address in use.
    Eaddrinuse = 98;
    /// Address not available.
    Eaddrnotavail = 99;
    /// No buffer space.
    Enobufs = 105;
    /// Connected already.
    Eisconn = 106;
    /// Not connected.
    Enotconn = 107;
    /// Timed out.
    Etimedout = 110;
    /// Connection refused.
    Econnrefused = 111;
}

impl Errno {
    /// The result register's value: the negative number, sign-extended.
    pub fn to_result(self) -> i64 {
        i64::from(self.value()).wrapping_neg()
    }

    /// Splits a result register into success or refusal.
    ///
    /// # Errors
    /// The decoded refusal; an unknown negative value decodes as [`Errno::Einval`].
    pub fn check(result: i64) -> Result<u64, Self> {
        match u64::try_from(result) {
            Ok(value) => Ok(value),
            Err(_) => Err(i32::try_from(result.wrapping_neg())
                .ok()
                .and_then(Self::from_value)
                .unwrap_or(Self::Einval)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn results_round_trip() {
        for errno in Errno::ALL {
            assert_eq!(Errno::check(errno.to_result()), Err(*errno));
        }
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(0x4_0014), Ok(0x4_0014));
        assert_eq!(Errno::check(i64::MIN), Err(Errno::Einval));
    }

    #[test]
    fn the_numbers_are_those_of_the_header() {
        assert_eq!(Errno::Efault.to_result(), -14);
        assert_eq!(Errno::Enosys.to_result(), -38);
        assert_eq!(Errno::Eopnotsupp.to_result(), -95);
    }
}
