"""`excise finetune`: does the lead of a criterion survive recovery?"""
