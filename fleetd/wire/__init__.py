"""Packet layouts and their crypto, pure: no sockets, no loop, no time. Drivers and the simulator share this code.

`rmcp.py` frames RMCP, ASF and IPMI LAN messages, `rakp.py` holds the RMCP+ key exchange and the sealed session
packets, `ipmi.py` the numbers and layouts of the commands we use, `fru.py` the FRU storage format. "IPMI n.n" in a
comment names a section of the *IPMI Specification v2.0, revision 1.1*; "ASF" the *Alert Standard Format
Specification 2.0* (DSP0136).
"""
